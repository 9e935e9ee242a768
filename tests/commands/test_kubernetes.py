"""The manifests against the schemas of Kubernetes and of its MPI operator, and against our files.

A cluster is not needed. With MPIJOB_CRD=FILE, the operator's own definition of an MPIJob
(`manifests/base/kubeflow.org_mpijobs.yaml` in its repository) is checked too.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlrm.config import SETTINGS
from launch.command_line import parse

jsonschema = pytest.importorskip("jsonschema", reason="needs kubernetes-validate: make setup")
kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="needs kubernetes-validate: make setup"
)
# YAML and schemas alone; the packages are the default profile's.
pytestmark = pytest.mark.one_profile

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "launch" / "kubernetes"
DOCKERFILE = (ROOT / "launch" / "docker" / "Dockerfile").read_text()
VERSION = "1.35"
CRD = os.environ.get("MPIJOB_CRD", "")


def spec_of(**fields: Any) -> dict:
    """A JSON schema of an object with these fields and no others, all of them needed."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


COUNT = {"type": "integer", "minimum": 0}


def replicas(**count: int) -> dict:
    policy = {"enum": ["Never", "OnFailure"]}
    return spec_of(
        replicas={"type": "integer", **count}, restartPolicy=policy, template={"type": "object"}
    )


# What the operator accepts in the fields that we use; an unknown field is a mistake in writing.
MPIJOB = spec_of(
    apiVersion={"const": "kubeflow.org/v2beta1"},
    kind={"const": "MPIJob"},
    # The names of the pods are made of it.
    metadata=spec_of(name={"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$"}),
    spec=spec_of(
        slotsPerWorker=COUNT,
        runLauncherAsWorker={"type": "boolean"},
        launcherCreationPolicy={"enum": ["AtStartup", "WaitForWorkersReady"]},
        sshAuthMountPath={"type": "string", "pattern": "^/."},
        runPolicy=spec_of(
            cleanPodPolicy={"enum": ["None", "Running", "All"]},
            backoffLimit=COUNT,
        ),
        mpiReplicaSpecs=spec_of(Launcher=replicas(const=1), Worker=replicas(minimum=1)),
    ),
)


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((MANIFESTS / name).read_text()))


def mpijob() -> dict:
    """A copy without the anchors, in which a change is a change in one place."""
    return json.loads(json.dumps(documents("mpijob.yaml")[0]))


def pod_specs() -> dict[str, dict]:
    """The specifications of all pods, by their container's name."""
    specs = [documents("job.yaml")[0]["spec"]["template"]["spec"]]
    specs += [
        replica["template"]["spec"] for replica in mpijob()["spec"]["mpiReplicaSpecs"].values()
    ]
    return {spec["containers"][0]["name"]: spec for spec in specs}


def check(document: dict) -> None:
    """Raises an error if a document is not what Kubernetes and the operator accept."""
    if document["kind"] != "MPIJob":
        kubernetes_validate.validate(document, VERSION, strict=True)
        return
    jsonschema.validate(document, MPIJOB)
    for replica in document["spec"]["mpiReplicaSpecs"].values():
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "any"},
            **replica["template"],
        }
        kubernetes_validate.validate(pod, VERSION, strict=True)


@pytest.mark.parametrize("name", ["storage.yaml", "job.yaml", "mpijob.yaml"])
def test_a_manifest_is_what_kubernetes_accepts(name: str) -> None:
    for document in documents(name):
        check(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/slotsPerWorkers", 8),
        ("spec/slotsPerWorker", "8"),
        ("spec/runPolicy/cleanPodPolicy", "Always"),
        ("spec/mpiReplicaSpecs/Launcher/replicas", 2),
        ("spec/mpiReplicaSpecs/Launcher/restartPolicy", "Always"),
        ("spec/mpiReplicaSpecs/Worker/replicas", 0),
        ("spec/mpiReplicaSpecs/Worker/template/spec/containers/0/lifecycle/prestop", {}),
        ("spec/mpiReplicaSpecs/Worker/template/spec/containers/0/ports/0/containerPort", "ssh"),
    ],
)
def test_a_mistake_in_the_mpijob_is_found(path: str, value: object) -> None:
    job = mpijob()
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    place: Any = job
    for key in parents:
        place = place[key]
    place[last] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(job)


@pytest.mark.skipif(not CRD, reason="set MPIJOB_CRD to the operator's kubeflow.org_mpijobs.yaml")
def test_the_mpijob_is_what_the_operators_definition_accepts() -> None:
    definition = yaml.safe_load(Path(CRD).read_text())
    (schema,) = (
        version["schema"]["openAPIV3Schema"]
        for version in definition["spec"]["versions"]
        if version["name"] == "v2beta1"
    )
    jsonschema.validate(mpijob(), closed(schema))
    job = mpijob()
    job["spec"]["slotsPerWorkers"] = 8
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, closed(schema))


def closed(schema: Any) -> Any:
    """An OpenAPI schema as JSON schema that refuses fields that it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if "properties" in result and isinstance(result["properties"], dict):
        result.setdefault("additionalProperties", False)
    return result


def test_as_many_ranks_start_as_the_hosts_have_slots() -> None:
    job = mpijob()["spec"]
    hosts = sum(replica["replicas"] for replica in job["mpiReplicaSpecs"].values())
    launcher = pod_specs()["launcher"]["containers"][0]
    options, runner, command = parse([*launcher["command"], *launcher["args"]][3:])
    assert options.np == hosts * job["slotsPerWorker"]
    assert runner == ["--hostfile=/etc/mpi/hostfile"]
    assert command[0] == "main.py"
    one_host = pod_specs()["train"]["containers"][0]
    options, _, _ = parse([*one_host["command"], *one_host["args"]][3:])
    assert options.np == one_host["resources"]["limits"]["nvidia.com/gpu"]


def test_pods_mount_what_their_flags_name() -> None:
    settings = {setting.name for setting in SETTINGS} | {"flagfile"}
    for container in (pod_specs()[name]["containers"][0] for name in ("train", "launcher")):
        words = container["args"]
        words = words[words.index("main.py") + 1 :] if "main.py" in words else words
        flags = dict(word[2:].split("=", 1) for word in words)
        assert set(flags) <= settings
        assert (ROOT / flags["flagfile"]).exists()
        mounts = {mount["mountPath"]: mount.get("readOnly") for mount in container["volumeMounts"]}
        assert mounts[flags["data_dir"]] is True
        assert flags["checkpoint_dir"].startswith("/runs/")
        assert mounts["/runs"] is None
    claims = {document["metadata"]["name"] for document in documents("storage.yaml")}
    for spec in pod_specs().values():
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == set(volumes)
        named = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in volumes.values()
            if "persistentVolumeClaim" in volume
        }
        assert named == claims


def test_pods_agree_with_the_image() -> None:
    """Its user, the home in which ssh finds its keys, and the file of sshd's settings."""
    (uid,) = re.findall(r"^ARG UID=(\d+)$", DOCKERFILE, re.MULTILINE)
    (home,) = re.findall(r"--home-dir (\S+)", DOCKERFILE)
    for spec in pod_specs().values():
        assert spec["securityContext"]["runAsUser"] == int(uid) != 0
        assert spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
    job = mpijob()["spec"]
    assert job["sshAuthMountPath"] == f"{home}/.ssh"
    worker = pod_specs()["worker"]["containers"][0]
    assert f"COPY launch/docker/sshd_config {worker['command'][-1]}\n" in DOCKERFILE
    port = worker["ports"][0]["containerPort"]
    assert worker["readinessProbe"]["tcpSocket"]["port"] == port
    for name in ("ssh_config", "sshd_config"):
        assert f"Port {port}\n" in (ROOT / "launch" / "docker" / name).read_text()

"""What a server finds in a repository: whole versions, and a configuration that fits them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from serving.artifact import Artifact, read_artifact
from serving.triton import repository
from serving.triton.model_config import ModelOptions
from tests.support.artifacts import write_artifact


def make_artifact(folder: Path, saved_model: bool = False, **settings: object) -> Artifact:
    write_artifact(folder, **settings)  # type: ignore[arg-type]
    artifact = read_artifact(folder)
    if saved_model:  # whose content is no concern of the repository
        (folder / "saved_model" / "variables").mkdir(parents=True)
        (folder / "saved_model" / "saved_model.pb").write_bytes(b"graph")
        (folder / "saved_model" / "variables" / "variables.index").write_bytes(b"index")
        digest = artifact.files["tables.safetensors"]
        artifact.files["saved_model/saved_model.pb"] = digest  # type: ignore[index]
    return artifact


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def settings_of(config: str) -> dict[str, str]:
    """The simple fields of a configuration, by name."""
    return dict(re.findall(r"(\w+): (\[.*?\]|[^\s{}\[\]]+)", config))


def test_a_version_holds_the_artifact_without_a_copy(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "a", dictionary=True)
    where = tmp_path / "repository"
    assert repository.add_scorer_version(artifact, where, "dlrm", None, ModelOptions()) == 1
    inside = {f"1/artifact/{name}" for name in (*artifact.files, "artifact.json")}
    assert files_below(where / "dlrm") == {"config.pbtxt", "1/model.py", *inside}
    for name in artifact.files:
        assert (where / "dlrm/1/artifact" / name).samefile(tmp_path / "a" / name)
    assert os.listdir(where) == ["dlrm"], "something is left over"
    assert repository.has_newest(artifact, where, "dlrm")
    other = make_artifact(tmp_path / "b", seed=1, dictionary=True)
    assert not repository.has_newest(other, where, "dlrm")


def test_files_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_device(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_device)
    artifact = make_artifact(tmp_path / "a")
    repository.add_scorer_version(artifact, tmp_path / "r", "dlrm", 7, ModelOptions())
    for name in artifact.files:
        copy = tmp_path / "r/dlrm/7/artifact" / name
        assert copy.read_bytes() == (tmp_path / "a" / name).read_bytes()
        assert not copy.samefile(tmp_path / "a" / name)


def test_versions_count_up_and_are_never_replaced(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "a")

    def add(version: int | None) -> int:
        return repository.add_scorer_version(
            artifact, tmp_path / "r", "dlrm", version, ModelOptions()
        )

    assert [add(None), add(9), add(None)] == [1, 9, 10]
    with pytest.raises(ValueError, match="9 is there already; give another --version, such as 11"):
        add(9)
    with pytest.raises(ValueError, match="at least 1, found 0"):
        add(0)
    assert repository.versions_of(tmp_path / "r", "dlrm") == [1, 9, 10]


def test_nothing_appears_if_a_file_cannot_be_taken(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "a")
    (tmp_path / "a" / "broken").symlink_to("nowhere")
    with pytest.raises(OSError, match="nowhere|broken"):
        repository.add_scorer_version(artifact, tmp_path / "r", "dlrm", None, ModelOptions())
    assert files_below(tmp_path / "r") == set()


def test_the_configuration_says_what_the_options_say(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "a", vocab_sizes=(300, 3, 70000), num_dense=3)
    options = ModelOptions(
        max_batch_size=64,
        preferred_batch_sizes=(8, 16),
        max_queue_delay_us=250,
        max_queue_size=77,
        request_timeout_ms=40,
        instances=2,
        keep_versions=3,
        hot_share=0.25,
        threads=1,
        verify=False,
    )
    repository.add_scorer_version(artifact, tmp_path / "r", "shop", None, options)
    config = (tmp_path / "r/shop/config.pbtxt").read_text()
    found = settings_of(config)
    assert found["max_batch_size"] == "64"
    assert found["preferred_batch_size"] == "[ 8, 16 ]"
    assert found["max_queue_delay_microseconds"] == "250"
    assert found["max_queue_size"] == "77"
    assert found["default_timeout_microseconds"] == "40000"
    assert found["count"] == "2"
    assert found["num_versions"] == "3"
    for name, value in (("hot_share", "0.25"), ("threads", "1"), ("verify", "false")):
        assert f'key: "{name}" value: {{ string_value: "{value}" }}' in config
    tensors = dict(re.findall(r'name: "(\w+)" data_type: (TYPE_\w+ dims: \[ \d+ \])', config))
    assert tensors == {
        "dense": "TYPE_FP32 dims: [ 3 ]",
        "ids": "TYPE_INT32 dims: [ 3 ]",
        "packed_ids": "TYPE_INT32 dims: [ 2 ]",  # 2 + 1 bytes, and 3, in words of 4
        "logit": "TYPE_FP32 dims: [ 1 ]",
        "probability": "TYPE_FP32 dims: [ 1 ]",
    }


def test_without_limits_there_is_no_queue_policy(tmp_path: Path) -> None:
    """With any, Triton lets a lone request wait for half a second now and then."""
    artifact = make_artifact(tmp_path / "a")
    repository.add_scorer_version(artifact, tmp_path / "r", "dlrm", None, ModelOptions())
    assert "queue_policy" not in (tmp_path / "r/dlrm/config.pbtxt").read_text()


def test_a_later_version_keeps_the_configuration_if_its_tensors_fit(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "a")

    def add(artifact: Artifact, size: int) -> int:
        options = ModelOptions(max_batch_size=size)
        return repository.add_scorer_version(artifact, tmp_path / "r", "dlrm", None, options)

    add(artifact, 10)
    path = tmp_path / "r/dlrm/config.pbtxt"
    edited = path.read_text().replace("{ name", "{\n    name").replace("KIND_CPU", "KIND_AUTO")
    path.write_text(edited)
    assert add(artifact, 20) == 2
    assert path.read_text() == edited
    wider = make_artifact(tmp_path / "b", vocab_sizes=(2, 2, 2, 2))
    with pytest.raises(ValueError, match=r'"ids".*\[ 4 \].*give the model .* another --name'):
        add(wider, 10)
    assert repository.versions_of(tmp_path / "r", "dlrm") == [1, 2]


def test_the_saved_model_for_tritons_tensorflow_backend(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "a", saved_model=True, vocab_sizes=(5, 4), num_dense=6)
    repository.add_saved_model_version(artifact, tmp_path / "r", "dlrm", None, ModelOptions())
    assert files_below(tmp_path / "r/dlrm") == {
        "config.pbtxt",
        "1/model.savedmodel/saved_model.pb",
        "1/model.savedmodel/variables/variables.index",
    }
    config = (tmp_path / "r/dlrm/config.pbtxt").read_text()
    assert settings_of(config)["platform"] == '"tensorflow_savedmodel"'
    assert "optional" not in config
    tensors = dict(re.findall(r'name: "(\w+)" data_type: (TYPE_\w+ dims: \[ \d+ \].*) \}', config))
    assert tensors == {
        "dense": "TYPE_FP32 dims: [ 6 ]",
        "ids": "TYPE_INT32 dims: [ 2 ]",
        "logits": "TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] }",
        "probabilities": "TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] }",
    }


def test_the_saved_model_for_tensorflow_serving(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "a", saved_model=True)
    options = ModelOptions(max_batch_size=64, max_queue_delay_us=5)
    repository.add_tensorflow_serving_version(artifact, tmp_path / "r", "dlrm", 3, options)
    assert files_below(tmp_path / "r") == {
        "models.config",
        "batching.config",
        "dlrm/3/saved_model.pb",
        "dlrm/3/variables/variables.index",
    }
    found = settings_of((tmp_path / "r/models.config").read_text())
    assert found["base_path"] == f'"{tmp_path / "r/dlrm"}"'
    batching = (tmp_path / "r/batching.config").read_text()
    assert "max_batch_size { value: 64 }" in batching
    assert "batch_timeout_micros { value: 5 }" in batching


def test_an_artifact_without_a_saved_model_says_so(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "a")
    with pytest.raises(ValueError, match="export it again without --no_saved_model"):
        repository.add_saved_model_version(artifact, tmp_path / "r", "m", None, ModelOptions())


@pytest.mark.parametrize("name", ["", ".hidden", "a/b"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    artifact = make_artifact(tmp_path / "a")
    with pytest.raises(ValueError, match="expected --name"):
        repository.add_scorer_version(artifact, tmp_path / "r", name, None, ModelOptions())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch_size": 0}, "--max_batch_size of at least 1, found 0"),
        ({"max_queue_size": -1}, "--max_queue_size of at least 0, found -1"),
        ({"hot_share": 1.5}, "--hot_share from 0 to 1, found 1.5"),
        ({"preferred_batch_sizes": (8, 5000)}, "from 1 to 4096.*found 5000"),
    ],
)
def test_options_without_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelOptions(**settings)  # type: ignore[arg-type]

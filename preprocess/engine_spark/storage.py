"""A folder that Spark can reach, local or not: `hdfs://`, `s3a://` and their like.

It must not know about what the files hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from preprocess.outputs import LocalStore


class HadoopFiles:
    """Hadoop's file systems, as Spark has configured them."""

    def __init__(self, session: SparkSession) -> None:
        self._jvm: Any = session._jvm
        self._gateway: Any = session.sparkContext._gateway
        self._configuration = session._jsc.hadoopConfiguration()

    def path(self, name: str) -> Any:
        """A full path; one without a scheme is local, or on the cluster's default file system."""
        path = self._jvm.org.apache.hadoop.fs.Path(name)
        return path.getFileSystem(self._configuration).makeQualified(path)

    def system(self, path: Any) -> Any:
        """The file system of a path."""
        return path.getFileSystem(self._configuration)

    def is_local(self, path: Any) -> bool:
        """Whether workers write to it as to any local (or shared and mounted) disk."""
        return str(path.toUri().getScheme()) == "file"

    def status(self, name: str) -> Any:
        """Length and time of change of a file.

        Raises:
            FileNotFoundError: There is none.
        """
        path = self.path(name)
        if not self.system(path).exists(path):
            raise FileNotFoundError(f"{name}: no such file")
        return self.system(path).getFileStatus(path)

    def settings(self) -> str:
        """All Hadoop settings as XML, for writers on the workers."""
        text = self._jvm.java.io.StringWriter()
        self._configuration.writeXml(text)
        return str(text.toString())

    def store(self, name: str) -> LocalStore | HadoopStore:
        """The folder of that name."""
        path = self.path(name)
        if self.is_local(path):
            return LocalStore(Path(path.toUri().getPath()))
        return HadoopStore(self, path)

    def read(self, path: Any) -> str:
        """Text of a file."""
        stream = self.system(path).open(path)
        try:
            return str(self._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
        finally:
            stream.close()

    def child(self, path: Any, name: str) -> Any:
        """A path within a folder."""
        return self._jvm.org.apache.hadoop.fs.Path(path, name)

    def join(self, parts: list[Any], target: Any) -> None:
        """Joins files in order: without a copy where the file system can, else by copying."""
        system = self.system(target)
        system.delete(target, False)
        if len(parts) > 1:
            rest = self._array(parts[1:])
            try:
                system.concat(parts[0], rest)
                parts = parts[:1]
            except Exception as error:  # noqa: BLE001 - py4j's error holds Java's
                if "Not implemented" not in str(error):
                    raise
        if len(parts) == 1:
            system.rename(parts[0], target)
            return
        output = system.create(target, True)
        try:
            for part in parts:
                source = system.open(part)
                self._jvm.org.apache.hadoop.io.IOUtils.copyBytes(source, output, 1 << 20, False)
                source.close()
        finally:
            output.close()

    def _array(self, paths: list[Any]) -> Any:
        array = self._gateway.new_array(self._jvm.org.apache.hadoop.fs.Path, len(paths))
        for index, path in enumerate(paths):
            array[index] = path
        return array


class HadoopStore:
    """A folder on one of Hadoop's file systems; see `preprocess.outputs.Store`."""

    def __init__(self, files: HadoopFiles, folder: Any) -> None:
        self._files = files
        self._folder = folder
        self._system = files.system(folder)

    def _path(self, name: str) -> Any:
        return self._files.child(self._folder, name)

    def read(self, name: str) -> str | None:
        """Text of a file, None if absent."""
        for candidate in (name, f"{name}.new"):
            # A kill between removal and renaming leaves the new file, whole.
            if self._system.exists(self._path(candidate)):
                return self._files.read(self._path(candidate))
        return None

    def write(self, name: str, text: str) -> None:
        """Writes a file that is durable and whole, or as it was before."""
        temporary, new = self._path(f"{name}.tmp"), self._path(f"{name}.new")
        stream = self._system.create(temporary, True)
        stream.write(bytearray(text.encode()))
        stream.hsync()
        stream.close()
        for old, target in ((temporary, new), (new, self._path(name))):
            self._system.delete(target, False)
            self._system.rename(old, target)

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return bool(self._system.exists(self._path(name)))

    def replace(self, old: str, new: str) -> None:
        """Renames a file or folder over what has the new name."""
        target = self._path(new)
        self._system.mkdirs(target.getParent())
        self._system.delete(target, True)
        self._system.rename(self._path(old), target)

    def remove(self, name: str) -> None:
        """Removes a file or folder with all it holds, if there."""
        self._system.delete(self._path(name), True)

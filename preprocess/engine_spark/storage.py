"""Files and folders on any file system of Hadoop: local, `hdfs://`, `s3a://` and others.

This module must not know what the files hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from preprocess.outputs import LocalStore


class HadoopFiles:
    """Hadoop's file systems, as the Spark session configures them."""

    def __init__(self, session: SparkSession) -> None:
        self._jvm: Any = session._jvm
        self._gateway: Any = session.sparkContext._gateway
        self._configuration = session._jsc.hadoopConfiguration()

    def path(self, name: str) -> Any:
        """Returns a full path; without a scheme it is on the default file system of the cluster."""
        path = self._jvm.org.apache.hadoop.fs.Path(name)
        return path.getFileSystem(self._configuration).makeQualified(path)

    def system(self, path: Any) -> Any:
        """Returns the file system of a path."""
        return path.getFileSystem(self._configuration)

    def is_local(self, path: Any) -> bool:
        """Whether a path is on a local disk, or on one that all workers mount."""
        return str(path.toUri().getScheme()) == "file"

    def status(self, name: str) -> Any:
        """Returns the length and the modification time of a file.

        Raises:
            FileNotFoundError: There is no such file.
        """
        path = self.path(name)
        if not self.system(path).exists(path):
            raise FileNotFoundError(f"{name}: no such file")
        return self.system(path).getFileStatus(path)

    def settings(self) -> str:
        """Returns all Hadoop settings as XML, for writers on the workers."""
        text = self._jvm.java.io.StringWriter()
        self._configuration.writeXml(text)
        return str(text.toString())

    def store(self, name: str) -> LocalStore | HadoopStore:
        """Returns the folder of that name."""
        path = self.path(name)
        if self.is_local(path):
            return LocalStore(Path(path.toUri().getPath()))
        return HadoopStore(self, path)

    def read(self, path: Any) -> str:
        """Returns the text of a file."""
        stream = self.system(path).open(path)
        try:
            return str(self._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
        finally:
            stream.close()

    def child(self, path: Any, name: str) -> Any:
        """Returns a path within a folder."""
        return self._jvm.org.apache.hadoop.fs.Path(path, name)

    def join(self, parts: list[Any], target: Any) -> None:
        """Concatenates files in order, without copying where the file system supports it."""
        system = self.system(target)
        system.delete(target, False)
        if len(parts) > 1:
            rest = self._array(parts[1:])
            try:
                system.concat(parts[0], rest)
                parts = parts[:1]
            except Exception as error:  # noqa: BLE001 - py4j's error wraps Java's
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
        """Returns the text of a file, or None if it is absent."""
        for candidate in (name, f"{name}.new"):
            # A kill between the removal and the renaming leaves the complete new file.
            if self._system.exists(self._path(candidate)):
                return self._files.read(self._path(candidate))
        return None

    def write(self, name: str, text: str) -> None:
        """Writes a text file durably, so that it is complete or as it was before."""
        temporary, new = self._path(f"{name}.tmp"), self._path(f"{name}.new")
        stream = self._system.create(temporary, True)
        stream.write(bytearray(text.encode()))
        stream.hsync()
        stream.close()
        for old, target in ((temporary, new), (new, self._path(name))):
            self._system.delete(target, False)
            self._system.rename(old, target)

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name exists."""
        return bool(self._system.exists(self._path(name)))

    def replace(self, old: str, new: str) -> None:
        """Renames a file or folder; whatever has the new name is replaced."""
        target = self._path(new)
        self._system.mkdirs(target.getParent())
        self._system.delete(target, True)
        self._system.rename(self._path(old), target)

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with its content, if it exists."""
        self._system.delete(self._path(name), True)

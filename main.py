"""Trains, evaluates or measures a DLRM on one rank or, under a launcher, on several.

    python3 main.py --data_dir=DATA ...                                        one rank
    horovodrun -np 8 ./hvd_wrapper.sh python3 main.py --data_dir=DATA ...      eight

The flags are the fields of dlrm/config/; --flagfile=FILE reads them from a file.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any, Optional

from dlrm import cli
from dlrm.config import SECTIONS, SETTINGS, Config
from dlrm.config.other_flags import instead_of

with cli.project_environment():
    from absl import app, flags

# Read when TensorFlow is imported: its notices would hide our lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


class HelpFlag(app.HelpFlag):
    """Prints the flags under the names of their sections, without absl's own.

    Args:
        name: `help` or `helpshort`, to which absl's own messages point.
        short_name: One letter for the same; None for none.
    """

    def __init__(self, name: str, short_name: str | None) -> None:
        self.NAME, self.SHORT_NAME = name, short_name
        super().__init__()
        self.allow_override = True  # replaces absl's flag

    def parse(self, arg: Any) -> None:
        """Prints the help and exits."""
        if self._parse(arg):
            print(__doc__, *map(flags.FLAGS.module_help, SECTIONS), sep="\n")
            sys.exit(0)


def define_flags() -> None:
    """Makes a flag of each setting, and groups them by section in `--help`."""
    for setting in SETTINGS:
        name, default, text = setting.name, setting.default, setting.help
        group: dict[str, Any] = {"module_name": setting.section}
        if setting.choices:
            flags.DEFINE_enum(name, default, setting.choices, text, **group)
        elif setting.type is bool:
            flags.DEFINE_bool(name, default, text, **group)
        elif setting.type in (int, Optional[int]):
            flags.DEFINE_integer(name, default, text, **group)
        elif setting.type in (float, Optional[float]):
            flags.DEFINE_float(name, default, text, **group)
        elif setting.type == tuple[int, ...]:
            flags.DEFINE_list(name, [str(number) for number in default], text, **group)
        else:
            flags.DEFINE_string(name, default, text, **group)
        for alias in setting.aliases:
            flags.DEFINE_alias(alias, name, **group)
    app.define_help_flags()
    flags.DEFINE_flag(HelpFlag("help", "?"))
    flags.DEFINE_flag(HelpFlag("helpshort", None))


def config_from_flags() -> Config:
    """Returns the parsed flags as one frozen value.

    Raises:
        ValueError: A flag's value, or several together, make no sense.
    """
    values: dict[str, Any] = {setting.name: flags.FLAGS[setting.name].value for setting in SETTINGS}
    for setting in SETTINGS:
        if setting.type != tuple[int, ...]:
            continue
        name = setting.name
        try:
            values[name] = tuple(map(int, values[name]))
        except ValueError:
            raise ValueError(
                f"expected --{name} of integers such as {','.join(map(str, setting.default))}, "
                f"found {','.join(values[name])}"
            ) from None
    return Config.of(**values)


def import_program() -> tuple[Any, Any, Any]:
    """Imports TensorFlow and what builds on it: after the flags, whose errors come at once.

    Returns:
        `dataset.open_data`, `dlrm.train.run.run` and `model.build_model`.
    """
    # TensorFlow 2.14, imported while absl runs, else begins as TensorFlow 1: `==` of tensors
    # compares their identities then. Set before its import, which sets it too, but too late.
    os.environ["TF2_BEHAVIOR"] = "1"
    with cli.project_environment(), cli.stderr_on_failure(), cli.quick_imports():
        from dataset import open_data
        from dlrm.train.run import run
        from model import build_model
    return open_data, run, build_model


def run_mode(rest: list[str]) -> int:
    """Runs what the flags say.

    Args:
        rest: Arguments that are no flags; there must be none.

    Returns:
        The exit code: 0 at the end, 75 (EX_TEMPFAIL) where starting again resumes the run.

    Raises:
        ValueError, OSError: One line for the user.
    """
    if rest:
        raise ValueError(f"expected flags only, found {rest[0]!r}; write --name=value")
    config = config_from_flags()
    open_data, run, build_model = import_program()
    if config.run.mode == "inference_benchmark":
        from serving.inference_benchmark import run_benchmark

        run_benchmark(config, open_data, build_model)
        return os.EX_OK
    return os.EX_OK if run(config, open_data, build_model) else os.EX_TEMPFAIL


def main(argv: list[str]) -> int:
    """Runs what the flags say; an error becomes one line. Returns the exit code."""
    return cli.exit_code(partial(run_mode, argv[1:]))


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; a bad flag ends the program with one line.

    Returns:
        The program's name and the arguments that are no flags.
    """
    try:
        return list(flags.FLAGS(argv))
    except flags.UnrecognizedFlagError as error:
        hint = instead_of(error.flagname)
        cli.print_error(f"--{error.flagname}: {hint}" if hint else f"{error}; see --help")
        sys.exit(cli.FAILURE)
    except flags.Error as error:
        cli.print_error(f"{error}; see --help")
        sys.exit(cli.FAILURE)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)

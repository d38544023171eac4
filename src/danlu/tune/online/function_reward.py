"""A reward written in Python by the user."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

from danlu.core.errors import ConfigError, DanluError, did_you_mean
from danlu.data.formats.openai import write_message
from danlu.tune.online.samples import RewardError, Sample, checked

OFFERED = ("prompts", "answers", "references", "rows", "tokens", "finished")
"""What a function can ask for by the names of its parameters; see :class:`FunctionReward`."""


class FunctionReward:
    """A function ``path/to/file.py:name`` or ``package.module:name``, called once for many answers.

    It is called with those of these lists that it has parameters for, or all of them if it takes ``**anything``:

    - ``prompts``: messages as in OpenAI's format, a list of ``{"role": …, "content": …}`` each
    - ``answers``: the texts
    - ``references``: the answers that the rows bring, or None
    - ``rows``: content hashes of the rows, 16 hexadecimal digits, as in files of predictions
    - ``tokens``: lengths of the answers in tokens
    - ``finished``: whether the model ended the answer by itself

    and with the arguments written behind its name. It returns a list of one finite number for each answer::

        def brevity(answers, limit=80):
            return [1.0 if len(answer) <= limit else 0.0 for answer in answers]

    Args:
        source: where it is.
        arguments: passed on by name.

    Raises:
        ConfigError: when there is no such function or it cannot be called like this.
    """

    def __init__(self, source: str, arguments: Mapping[str, Any]) -> None:
        self.source, self.arguments = source, dict(arguments)
        self.function = find_function(source)
        self._wanted = _wanted(source, self.function, self.arguments)

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """See :class:`danlu.tune.online.samples.Reward`."""
        offered: dict[str, list[Any]] = {
            "prompts": [[write_message(message) for message in sample.prompt.messages] for sample in samples],
            "answers": [sample.answer for sample in samples],
            "references": [sample.reference for sample in samples],
            "rows": [f"{sample.key:016x}" for sample in samples],
            "tokens": [sample.tokens for sample in samples],
            "finished": [sample.finished for sample in samples],
        }
        try:
            values = self.function(**{name: offered[name] for name in self._wanted}, **self.arguments)
        except DanluError:
            raise
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise RewardError(
                f"the reward function raised {_told(error)}",
                where=self._line(error),
                hint=f"It was called with {len(samples)} answers, the first one is {samples[0].answer[:60]!r}.",
            ) from error
        return checked(self.source, values, samples)

    def _line(self, error: BaseException) -> str:
        home, _, name = self.source.rpartition(":")
        return f"{home}{_line_of(error)}:{name}"


def find_function(source: str) -> Callable[..., Any]:
    """The function that ``file.py:name`` or ``package.module:name`` stands for.

    Raises:
        ConfigError: when the file, module or function is missing, or importing it fails.
    """
    home, _, name = source.rpartition(":")
    module = _from_file(home) if home.endswith(".py") else _from_package(home)
    function = getattr(module, name, None)
    if callable(function):
        return function
    known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise ConfigError(
        f"there is no function {name} in {home}",
        where=source,
        hint=did_you_mean(name, known) or (f"It has {', '.join(known)}." if known else None),
    )


def _from_file(home: str) -> ModuleType:
    path = Path(home).expanduser()
    if not path.is_file():
        raise ConfigError("there is no such file", where=home, hint="The path is relative to the current folder.")
    path = path.resolve()
    name = f"danlu_reward_{blake2b(bytes(path), digest_size=6).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"the file cannot be imported ({_told(error)})", where=f"{home}{_line_of(error)}") from error
    return module


def _from_package(home: str) -> ModuleType:
    try:
        return importlib.import_module(home)
    except Exception as error:
        raise ConfigError(
            f"the module {home} cannot be imported ({_told(error)})",
            where=f"{home}{_line_of(error)}",
            hint="Install it, or name a file: path/to/file.py:function.",
        ) from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _line_of(error: BaseException) -> str:
    """``:line`` of the innermost place of an error in the user's own code, if there is one."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}" if error.lineno else ""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    return f":{own[0].lineno}" if own else ""


def _wanted(source: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> list[str]:
    """Those of :data:`OFFERED` that the function takes."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables written in C have none
        return list(OFFERED)
    parameters = signature.parameters.values()
    everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    wanted = [name for name in OFFERED if everything or name in signature.parameters]
    hint = f"A reward function is given {', '.join(OFFERED)} by name, and the arguments written behind it."
    taken = sorted(set(arguments) & set(OFFERED))
    if taken:
        raise ConfigError(f"the argument {taken[0]} is filled in by danlu", where=source, hint=hint)
    try:
        signature.bind(**dict.fromkeys(wanted), **arguments)
    except TypeError as error:
        raise ConfigError(f"the function cannot be called: {error}", where=source, hint=hint) from error
    return wanted

"""The config language: a config is a nested dict that names calls, and `build` makes the calls.

    c.data = {'train': spec(sources.tfds, name='tiny_shakespeare', split='train')}
    c.tokenizer = spec(text.bpe, vocab_size=8192, source=ref('data.train'))
    c.model = spec(models.gpt, vocab_size=ref('tokenizer.vocab_size'), dim=256, ...)

A call is a dict with the key 'call' ('module:qualname') beside its keywords, every default written out. A reference is the
string '${path}', a bare function '${module:qualname}'. So a config is JSON and can be read, compared and changed without running it.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict

from lmx.types import BadInput

F = TypeVar('F', bound=Callable[..., Any])
CALL = 'call'
_REFERENCE = re.compile(r'\$\{([\w.]+)\}')
_FUNCTION = re.compile(r'\$\{([\w.]+:[\w.]+)\}')


def spec(function: Callable[..., Any] | str, /, **kwargs: Any) -> ConfigDict:
    """A call to be made by `build`, with every keyword default recorded.

    Args:
      function: any importable function or class, or its 'module:qualname'.
      **kwargs: plain values, references, functions, or other specs, at any depth of dicts and sequences.

    Raises:
      BadInput: an unknown keyword (the nearest one is named), a missing one, or a function that no other process could import.
    """
    name = function if isinstance(function, str) else name_of(function)
    return ConfigDict(_with_defaults(name, {key: to_plain(value) for key, value in kwargs.items()}), convert_dict=True)


def ref(path: str) -> str:
    """A reference to what stands at `path` of the same config: a value, a built object, or an attribute of one."""
    return f'${{{path}}}'


def name_of(function: Callable[..., Any]) -> str:
    """'module:qualname' of an importable function or class."""
    module, qualname = getattr(function, '__module__', None), getattr(function, '__qualname__', None)
    if str(module).startswith('jax._src.'):  # where JAX keeps it is JAX's own affair, and changes
        public = [each for each in ('jax.nn', 'jax.numpy') if getattr(sys.modules.get(each), str(qualname), None) is function]
        module = public[0] if public else module
    name = f'{module}:{qualname}'
    try:
        found = find(name)
    except BadInput:
        found = None
    if found is not function:
        raise BadInput(f'{qualname or function!r} of {module} cannot be imported by name; put it at the top level of a module of your own')
    return name


def find(name: str, allow: Sequence[str] | None = None) -> Callable[..., Any]:
    """The function called 'module:qualname'.

    Raises:
      BadInput: it does not exist (the nearest is named), or no prefix of `allow` covers its module.
    """
    module_name, _, qualname = name.partition(':')
    if allow is not None and not any(module_name == prefix or module_name.startswith(f'{prefix}.') for prefix in allow):
        raise BadInput(f'the config calls {name!r}, which is outside {", ".join(allow)}; if you trust it, add --allow_import={module_name}')
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise BadInput(f'{name!r}: no module named {error.name!r}; check the spelling and PYTHONPATH') from None
    for part in qualname.split('.'):
        if not hasattr(found, part):
            raise BadInput(f'{module_name} has no {part!r}{nearest(part, dir(found))}')
        found = getattr(found, part)
    return found


def nearest(word: str, options: Sequence[str]) -> str:
    """'; did you mean ...?', or nothing when nothing is near."""
    close = difflib.get_close_matches(word, list(options), n=1)
    return f'; did you mean {close[0]!r}?' if close else ''


class Builder:
    """Makes the calls of one config, each path once.

    `given` holds objects by path that are used in place of what the config says there: shared ones (the tokenizer), or traced
    numbers ({'optim.schedule.peak': tracer}). `allow` limits what may be called, for configs that somebody else wrote.
    """

    def __init__(self, config: Mapping[str, Any], given: Mapping[str, Any] | None = None, allow: Sequence[str] | None = None):
        self.config = to_plain(config)
        self.built: dict[str, Any] = dict(given or {})
        self.allow = allow
        self._open: list[str] = []

    def __call__(self, path: str) -> Any:
        """The object at `path`.

        Raises:
          BadInput: no such path, a reference that leads in a circle, or whatever the called function refuses.
        """
        if path not in self.built:
            if path in self._open:
                raise BadInput(f'config references go in a circle: {" -> ".join([*self._open, path])}')
            self._open.append(path)
            try:
                self.built[path] = self._make(get(self.config, path), path)
            finally:
                self._open.pop()
        return self.built[path]

    def _make(self, node: Any, path: str) -> Any:
        if isinstance(node, Mapping):
            made = {key: self(f'{path}.{key}') for key in node if key != CALL}
            return find(node[CALL], self.allow)(**made) if CALL in node else made
        if isinstance(node, tuple):
            return tuple(self(f'{path}.{index}') for index in range(len(node)))
        if isinstance(node, str):
            if match := _REFERENCE.fullmatch(node):
                return self._follow(match[1])
            if match := _FUNCTION.fullmatch(node):
                return find(match[1], self.allow)
        return node

    def _follow(self, path: str) -> Any:
        """What a reference means: the config's value where it has one (not None), else an attribute of the object built above it."""
        if path in self.built or has(self.config, path):
            value = self(path)
            if value is not None or '.' not in path:
                return value
        parent, _, attribute = path.rpartition('.')
        if not parent:
            raise BadInput(f'reference ${{{path}}} leads nowhere{nearest(path, list(self.config))}')
        above = self._follow(parent)
        if isinstance(above, Mapping) or not hasattr(above, attribute):
            options = list(above) if isinstance(above, Mapping) else [name for name in dir(above) if not name.startswith('_')]
            raise BadInput(f'reference ${{{path}}}: {parent!r} has no {attribute!r}{nearest(attribute, options)}')
        return getattr(above, attribute)


def build(config: Mapping[str, Any], path: str, given: Mapping[str, Any] | None = None) -> Any:
    """Makes the call at `path` of a config and returns its result; see `Builder`, which builds several things that share parts."""
    return Builder(config, given)(path)


def finish(config: Mapping[str, Any]) -> ConfigDict:
    """A complete, checked and locked config: defaults recorded everywhere, sequences as tuples, references that lead somewhere.

    Raises:
      BadInput: a call with a keyword its function does not know, or without one that it needs.
    """
    out = ConfigDict(_finish(to_plain(config), ''), convert_dict=True)
    return out.lock()


def _finish(node: Any, path: str) -> Any:
    if isinstance(node, Mapping):
        made = {key: _finish(value, f'{path}.{key}' if path else key) for key, value in node.items()}
        if CALL in made:
            try:
                made = _with_defaults(made.pop(CALL), made)
            except BadInput as error:
                raise BadInput(f'config.{path}: {error}') from None
        return made
    if isinstance(node, (tuple, list)):
        return tuple(_finish(item, f'{path}.{index}') for index, item in enumerate(node))
    return node


def _with_defaults(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The call as a plain dict; the function's signature supplies the defaults and the checks."""
    parameters = inspect.signature(find(name)).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {key: p for key, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    for key in kwargs:
        if key not in named and not takes_any:
            raise BadInput(f'{name} has no keyword {key!r}{nearest(key, list(named))}')
    missing = [key for key, p in named.items() if p.default is p.empty and key not in kwargs]
    if missing:
        raise BadInput(f'{name} needs {", ".join(missing)}')
    defaults = {key: to_plain(p.default) for key, p in named.items() if p.default is not p.empty}
    return {CALL: name, **{key: kwargs.get(key, defaults.get(key)) for key in named}, **{k: v for k, v in kwargs.items() if k not in named}}


def extends(base: Callable[..., Any], *without: str) -> Callable[[F], F]:
    """For a function that hands its **keywords on to `base`: its signature then shows base's keywords, but for those of `without`.

    So a config records and checks them all.
    """

    def wrap(function: F) -> F:
        own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {*without, *(p.name for p in own)}
        handed = [p for p in inspect.signature(base).parameters.values() if p.name not in taken]
        function.__signature__ = inspect.Signature([*own, *handed])
        return function

    return wrap


def to_plain(value: Any) -> Any:
    """A config or a keyword's value as JSON would hold it: plain dicts, sequences as tuples, functions by name.

    Raises:
      BadInput: a value that is neither plain nor a function.
    """
    if isinstance(value, (Mapping, ConfigDict)):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(to_plain(item) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value) and hasattr(value, '__qualname__'):
        return f'${{{name_of(value)}}}'
    raise BadInput(f'{value!r} is neither a plain value nor a function; write it as spec(function, ...)')


def to_json(config: Mapping[str, Any]) -> str:
    return json.dumps(to_plain(config), indent=2) + '\n'


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote: equal to it, locked. Calls nothing."""
    return ConfigDict(to_plain(json.loads(text)), convert_dict=True).lock()


def leaves(config: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """(path, value) of every scalar and tuple."""
    if isinstance(config, (Mapping, ConfigDict)):
        for key, value in config.items():
            yield from leaves(value, f'{path}.{key}' if path else key)
    else:
        yield path, config


def get(config: Mapping[str, Any], path: str) -> Any:
    """The raw value at a dotted path.

    Raises:
      BadInput: the path does not exist; the nearest is named.
    """
    node: Any = config
    walked: list[str] = []
    for part in path.split('.'):
        children = _children(node)
        walked.append(part)
        if part not in children:
            near = nearest(part, list(children)) or nearest(path, [key for key, _ in leaves(config)])
            raise BadInput(f'the config has no {".".join(walked)!r}{near}')
        node = children[part]
    return node


def _children(node: Any) -> dict[str, Any]:
    if isinstance(node, (Mapping, ConfigDict)):
        return dict(node.items())
    return {str(index): item for index, item in enumerate(node)} if isinstance(node, tuple) else {}


def has(config: Mapping[str, Any], path: str) -> bool:
    try:
        get(config, path)
    except BadInput:
        return False
    return True


def diff(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(path, value in a, value in b) wherever two configs differ; a missing value is shown as '-'."""
    left, right = dict(leaves(to_plain(a))), dict(leaves(to_plain(b)))
    paths = [*left, *(path for path in right if path not in left)]
    return [(path, left.get(path, '-'), right.get(path, '-')) for path in paths if left.get(path, '-') != right.get(path, '-')]


def parse_arg(arg: str, **defaults: Any) -> types.SimpleNamespace:
    """The text behind a config file's colon: 'debug,model=rnn,layers=3'. A bare name means True; types follow the defaults.

    Raises:
      BadInput: an unknown name (the nearest is named) or a value of another type.
    """
    out = dict(defaults)
    for item in filter(None, arg.split(',')):
        key, equals, value = item.partition('=')
        if key not in defaults:
            raise BadInput(f'config argument {key!r} is unknown; there are {", ".join(defaults)}{nearest(key, list(defaults))}')
        out[key] = _as_type(key, value, defaults[key]) if equals else _bare(key, defaults[key])
    return types.SimpleNamespace(**out)


def pick(choices: Mapping[str, Any], name: str, what: str = 'model') -> Any:
    """A copy of one of a config file's choices by its name.

    Raises:
      BadInput: there is none of this name.
    """
    if name not in choices:
        raise BadInput(f'{what} {name!r} is unknown; there are {", ".join(choices)}{nearest(name, list(choices))}')
    return copy.deepcopy(choices[name])


def _bare(key: str, default: Any) -> bool:
    if not isinstance(default, bool):
        raise BadInput(f'config argument {key!r} needs a value, as in {key}={default!r}')
    return True


def _as_type(key: str, value: str, default: Any) -> Any:
    if isinstance(default, bool):
        if value.lower() not in ('true', 'false', '1', '0'):
            raise BadInput(f'config argument {key}={value!r} is not true or false')
        return value.lower() in ('true', '1')
    try:
        return type(default)(value) if default is not None else value
    except ValueError:
        raise BadInput(f'config argument {key}={value!r} is not of type {type(default).__name__}') from None

"""A single-threaded, callback-style network reactor in pure Python, on the selectors of the standard library.

`import reactor` loads no other module. The first use of a public name loads all of them, from `names.py`. They are not
loaded one by one, because a module that is loaded late cannot be read when no descriptor is free, or in a chroot.
"""

# Type checkers take this for True. Importing it from `typing` would take longer than the rest of this module.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from . import observe as observe
    from . import serve as serve
    from . import testing as testing
    from .names import *  # noqa: F403
    from .names import __all__ as __all__

__version__ = '0.2.0'

# Each of these names is loaded at its own first use, because many programs need none of them.
_LATER = {
    'Group': 'toolbox.group',
    'PendingRequest': 'toolbox.requests',
    'Reconnector': 'toolbox.reconnector',
    'Requests': 'toolbox.requests',
    'observe': 'observe',
    'reconnect': 'toolbox.reconnector',
    'serve': 'serve',
    'testing': 'testing',
}

if not TYPE_CHECKING:  # type checkers would accept every misspelt name

    def __getattr__(name: str) -> object:
        if name in _LATER:
            module = __import__(f'{__name__}.{_LATER[name]}', fromlist=[name])
            return globals().setdefault(name, getattr(module, name, module))
        if name == '__all__' or not name.startswith('_'):  # tools ask modules for names such as `__wrapped__`
            _load()
        if name not in globals():
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        return globals()[name]

    def __dir__() -> list[str]:
        _load()
        return sorted({*globals(), *_LATER})

    def _load() -> None:
        if '__all__' not in globals():
            names = __import__(f'{__name__}.names', fromlist=['__all__'])
            for name in names.__all__:
                if name not in _LATER:
                    globals().setdefault(name, getattr(names, name))
            globals().setdefault('__all__', names.__all__)  # the last one, because it says that all names are here

"""Methods that mean one thing for inodes and another for paths, and keep their types.

What they do is in `fspf.volume.inodes` and `fspf.volume.files`.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable

ByInode = ParamSpec("ByInode")
ByPath = ParamSpec("ByPath")
InodeResult_co = TypeVar("InodeResult_co", covariant=True)
PathResult_co = TypeVar("PathResult_co", covariant=True)

_INODE_KEYWORDS: Final = {"ino", "parent", "old_parent"}


class EitherMethod(Protocol[ByInode, InodeResult_co, ByPath, PathResult_co]):
    """A method whose first argument is an inode number or a path."""

    @overload
    def __call__(self, *args: ByInode.args, **kwargs: ByInode.kwargs) -> InodeResult_co: ...
    @overload
    def __call__(self, *args: ByPath.args, **kwargs: ByPath.kwargs) -> PathResult_co: ...


def either(by_inode: Callable[..., Any], by_path: Callable[..., Any]) -> Any:
    """Return a function that calls one or the other: what starts with an int is for the inode layer."""

    @wraps(by_path)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        numbered = isinstance(args[0], int) if args else not kwargs.keys().isdisjoint(_INODE_KEYWORDS)
        return (by_inode if numbered else by_path)(self, *args, **kwargs)

    return method


def also_by_inode(
    by_inode: Callable[Concatenate[Any, ByInode], InodeResult_co],
) -> Callable[
    [Callable[Concatenate[Any, ByPath], PathResult_co]], EitherMethod[ByInode, InodeResult_co, ByPath, PathResult_co]
]:
    """Let a method that takes a path also be the inode layer's method of that name."""

    def decorate(by_path: Callable[..., Any]) -> Any:
        return either(by_inode, by_path)

    return decorate


class ClassOrObject:
    """`Volume.open(path, cas)` opens a volume, `volume.open(path, mode)` opens a file in it."""

    def __init__(self, on_class: Any, on_object: Any) -> None:
        self._on_class = on_class  # a classmethod object
        self._on_object = on_object  # a function
        self.__doc__ = on_class.__doc__

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            return self._on_class.__get__(None, owner)
        return self._on_object.__get__(instance, owner)

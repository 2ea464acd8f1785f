"""What long-lived things have in common: a nursery of their own, for as long as they are entered."""

from __future__ import annotations

import abc
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import trio

from hivemind_p2p.errors import NodeClosed


class Background(abc.ABC):
    """Something that runs while it is entered, once: ``async with``.

    Raises (on entering):
        NodeClosed: it was entered before.
    """

    _nursery_manager: AbstractAsyncContextManager[trio.Nursery, bool | None] | None = None
    _nursery: trio.Nursery | None = None
    """Owns the tasks; None outside the block."""

    @abc.abstractmethod
    async def _begin(self, nursery: trio.Nursery) -> None:
        """Start. What is raised here comes out of entering, after :meth:`_end`."""

    async def _end(self) -> None:  # noqa: B027 - many have nothing to do here
        """Stop, before the tasks are cancelled. Nothing cancels this, so it must be bounded."""

    async def __aenter__(self) -> Self:
        if self._nursery_manager is not None:
            name = type(self).__name__
            raise NodeClosed(f"this {name} was started before; make a new one instead of entering one twice")
        self._nursery_manager = trio.open_nursery()
        self._nursery = await self._nursery_manager.__aenter__()
        try:
            await self._begin(self._nursery)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._nursery_manager is not None
        assert self._nursery is not None
        nursery = self._nursery
        # The caller's own exception passes by the nursery, which would wrap it in a group.
        passes_by = error is None or isinstance(error, Exception)
        try:
            with trio.CancelScope(shield=True):
                await self._end()
        finally:
            self._nursery = None
            nursery.cancel_scope.cancel()
            passed = (None, None, None) if passes_by else (kind, error, trace)
            swallowed = await self._nursery_manager.__aexit__(*passed)
        return None if passes_by else swallowed

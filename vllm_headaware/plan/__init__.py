"""The plan: geometry, head classes and their blocks, budgets, and the one byte formula."""

from vllm_headaware.plan.head_class import HeadClass
from vllm_headaware.plan.make import make_plan
from vllm_headaware.plan.plan import Plan

__all__ = ["HeadClass", "Plan", "make_plan"]

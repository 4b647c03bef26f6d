"""Entry points for vLLM's plugin groups."""


def register() -> None:
    return None


def register_platform() -> None:
    return None

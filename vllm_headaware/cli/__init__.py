"""The vllm-headaware command; one file per subcommand."""

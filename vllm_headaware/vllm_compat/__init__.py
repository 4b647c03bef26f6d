"""Every touch of vLLM that is not public API; nothing outside this folder replaces vLLM code.

`ledger.py` says what is touched, why, and when it can go away. `contract.py` checks that it is
there, as it was when it was tested. There is a folder for each process: front_end, engine_core and
worker.
"""

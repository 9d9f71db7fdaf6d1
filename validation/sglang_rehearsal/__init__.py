"""Rehearses the cat-skip sign-off on one NVIDIA GPU: an installed SGLang with its HIP-only fused path enabled on CUDA.

``python -m validation.sglang_rehearsal --query-path cat|skip -- <sglang.launch_server arguments>`` starts it, for
``--baseline-cmd`` and ``--candidate-cmd``. No installed file is touched: ``hook/sitecustomize.py``, put first on
PYTHONPATH, brings ``patches`` into every process that SGLang spawns. ``releases`` knows the sources the patches were
run with, ``model`` makes a reduced GLM-5, ``export`` the trained checkpoint as SGLang serves it.
"""

"""The embedded engine: a small GLM-5-architecture model served over SGLang's HTTP surface.

``problems`` draws word problems, ``train`` makes the checkpoint of the architecture in ``model``. ``serving`` is the
forward pass over the pages of ``pool``, ``engine`` the continuous batch, ``server`` and ``openai`` the HTTP surface.
"""

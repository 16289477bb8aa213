"""Worlds: environments of texts, which answer the policy's turns; what they are is in `llm_env.worlds.base`."""

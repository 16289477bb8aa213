"""Verifiers: rewards that are computed by rules, and named in settings as ``verifier:number?column=answer``."""

"""Policies are types: packs say what a region may hold, the type check proves it, the plan does it.

Reading order: tags, keys, pseudonyms, encryption, cells, hierarchies, redaction, operators, filters, pack,
load, typecheck, derive, plan.
"""

from pipeline.policy.derive import curated_subject, derived_schemas
from pipeline.policy.keys import FileKeyStore, KeyStore, create_keys
from pipeline.policy.load import Packs, load_packs
from pipeline.policy.operators import OPERATORS, Operator
from pipeline.policy.pack import Pack
from pipeline.policy.plan import Applied, Plan, compile_plan
from pipeline.policy.typecheck import Flow, check_flow

__all__ = [
    "OPERATORS",
    "Applied",
    "FileKeyStore",
    "Flow",
    "KeyStore",
    "Operator",
    "Pack",
    "Packs",
    "Plan",
    "check_flow",
    "compile_plan",
    "create_keys",
    "curated_subject",
    "derived_schemas",
    "load_packs",
]

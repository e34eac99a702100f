"""Policies are types: packs say what a region may hold, the type check proves it, the plan does it.

Reading order: tags, keys, pseudonyms, encryption, cells, hierarchies, redaction, operators, filters, pack,
load, typecheck, derive, plan; explain, examples, describe speak to those who write packs.
"""

from pipeline.policy.derive import curated_subject, derived_schemas
from pipeline.policy.examples import ExampleResult, run_examples
from pipeline.policy.explain import Explanation, explain, judge_all
from pipeline.policy.keys import FileKeyStore, KeyStore, create_keys
from pipeline.policy.load import Packs, Survey, load_packs, survey_packs
from pipeline.policy.operators import OPERATORS, Operator
from pipeline.policy.pack import Pack
from pipeline.policy.plan import Applied, Plan, compile_plan
from pipeline.policy.typecheck import Flow, check_flow
from pipeline.policy.violations import Violation

__all__ = [
    "OPERATORS",
    "Applied",
    "ExampleResult",
    "Explanation",
    "FileKeyStore",
    "Flow",
    "KeyStore",
    "Operator",
    "Pack",
    "Packs",
    "Plan",
    "Survey",
    "Violation",
    "check_flow",
    "compile_plan",
    "create_keys",
    "curated_subject",
    "derived_schemas",
    "explain",
    "judge_all",
    "load_packs",
    "run_examples",
    "survey_packs",
]

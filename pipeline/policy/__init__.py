"""Policies are types: packs say what a region may hold, the type check proves it, the plan does it.

Reading order: tags, keys, pseudonyms, encryption, cells, hierarchies, redaction, operators, filters, pack,
terms, packs, faults, resolve, typecheck, derive, borders, load, plan; judge, explain, examples, describe
speak to those who write packs.
"""

from pipeline.policy.derive import curated_subject, derived_schemas
from pipeline.policy.examples import ExampleResult, run_examples
from pipeline.policy.explain import Explanation, explain
from pipeline.policy.flow import Flow
from pipeline.policy.judge import Denial, Judgement, judge_all
from pipeline.policy.keys import FileKeyStore, KeyStore, create_keys
from pipeline.policy.load import Survey, load_packs, survey_packs
from pipeline.policy.operators import OPERATORS, Operator
from pipeline.policy.pack import Pack
from pipeline.policy.packs import Packs
from pipeline.policy.plan import Applied, Plan, compile_plan
from pipeline.policy.terms import Terms
from pipeline.policy.typecheck import check_flow
from pipeline.policy.violations import Violation

__all__ = [
    "OPERATORS",
    "Applied",
    "Denial",
    "ExampleResult",
    "Explanation",
    "FileKeyStore",
    "Flow",
    "Judgement",
    "KeyStore",
    "Operator",
    "Pack",
    "Packs",
    "Plan",
    "Survey",
    "Terms",
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

"""``job.yaml``: the one document that every site approves. Its SHA-256 names the job.

Strict pydantic models, one per section, every key with the field's standard name. Reading and overriding
the YAML is in ``fedethos.documents``; the records that ``data`` describes are read by ``fedethos.data``.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fedethos.aggregation import Aggregation
from fedethos.intersections import check_intersections, crossed_categories
from fedethos.job_anchor import Anchor
from fedethos.job_augment import check_augment
from fedethos.job_clipping import check_cell_weights
from fedethos.job_data import UNKNOWN, Data
from fedethos.job_fairness import Fairness, Policy
from fedethos.job_federation import Federation, Robustness
from fedethos.job_language import LANGUAGE_TASKS, LanguageTask, check_language
from fedethos.job_losses import WEIGHING_LOSSES, check_loss
from fedethos.job_personal import Personal, check_personal
from fedethos.job_privacy import Privacy
from fedethos.job_scenarios import MATCHING, MOST, OTHERS, RecordScenario, check_scenarios
from fedethos.job_simulation import Simulation
from fedethos.job_strategy import check_strategy, steers_cells
from fedethos.section import PositiveFloat, Section

_WARMUP_ROUNDS, _ROUNDS_WITH_WARMUP = 2, 5  # measured in docs/benchmarks.md, "Small data"
_FEW_UNITS = 1_000  # of a site: the centre was measured at 500
LINEAR, MLP = "builtin:linear", "builtin:mlp"  # the models of tabular-classification


class Model(Section):
    path: str = Field(
        description="A folder with config.json and *.safetensors, or asset:NAME (see `fedethos models list`); "
        "for tabular-classification builtin:linear or builtin:mlp."
    )
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="Content hash of the folder; a mismatch is refused.")
    max_length: int = Field(
        128, ge=4, le=8192, description="Longest input in tokens; longer texts are cut, longer prompts with their answers are refused."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of a language model's frozen weights; adapters are always float32. bfloat16 halves the memory."
    )
    load_in_4bit: bool = Field(False, description="Frozen weights of a language model in 4 bits (bitsandbytes; needs a GPU).")
    chat_template: Literal["auto", "on", "off"] = Field(
        "auto", description="Put prompts into the tokenizer's chat template; auto: where it has one."
    )
    hidden: list[Annotated[int, Field(ge=1, le=4096)]] | None = Field(
        None, min_length=1, max_length=8, description="Width of each hidden layer of builtin:mlp, such as [64]."
    )

    @model_validator(mode="after")
    def _hidden_layers_belong_to_the_mlp(self) -> Model:
        if (self.hidden is not None) != (self.path == MLP):
            raise PydanticCustomError("CFG-272", "model.hidden gives the widths of builtin:mlp's hidden layers: with it, and only with it.")
        return self


class Lora(Section):
    """PEFT's own names (``peft.LoraConfig``)."""

    r: int = Field(8, ge=1, le=256, description="Rank of the update.")
    lora_alpha: PositiveFloat = Field(16.0, description="Scale: the update is lora_alpha / r times B·A.")
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout before A. It costs accuracy under privacy.")
    target_modules: Literal["all-linear"] | list[str] = Field("all-linear", description="Linear layers that get an adapter.")
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="Only these transformer layers. Layers below the first one can be cached (training.cache_frozen_prefix)."
    )


class Training(Section):
    local_steps: int = Field(20, ge=1, le=100_000, description="Optimizer steps per site and round.")
    batch_size: int = Field(64, ge=1, le=1_000_000, description="Expected units per step (Poisson); q = batch_size / declared size.")
    sampling: Literal["uniform", "group_balanced"] = Field(
        "uniform",
        description="group_balanced: people of rarer groups are sampled more often, as fairness.training_shares say; the highest rate is "
        "accounted for.",
    )
    micro_batch_tokens: int = Field(
        8192, ge=1, description="Padded tokens (tabular: records) per forward pass. It bounds memory; the mathematics does not change."
    )
    learning_rate: PositiveFloat = Field(2.0e-3, description="Of the adapters, at each site.")
    head_learning_rate: PositiveFloat | None = Field(None, description="For the classification head; null: learning_rate.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="At each site; its state is fresh in each round.")
    weight_decay: float = Field(0.0, ge=0.0, description="Decoupled weight decay of adamw, L2 penalty of sgd.")
    proximal_mu: float = Field(
        0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="FedProx: pull towards the round's global model; under privacy added after the noise.",
    )
    personal: Personal | None = Field(
        None, description="Ditto: each site keeps a personal adapter beside the global one; it never leaves the site."
    )
    head_warmup_rounds: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        "auto",
        description="In so many first rounds the classification head trains alone. auto: two, if a private job has five rounds or more.",
    )
    center_head: Literal["auto", "on", "off"] = Field(
        "auto",
        description="on: subtract a mean of what the classification head reads, which each site releases once and pays for with training. "
        "auto: where the head warms up and every site declares at most 1,000 training units.",
    )
    iterate_average: Literal["none", "tail", "ema"] = Field(
        "none",
        description="A site sends its last iterate, the mean of the round's last half (tail), or a moving average. Costs no epsilon.",
    )
    cache_frozen_prefix: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Compute what lies below the first adapted layer once per record. auto: when a whole layer does.",
    )
    dpo_beta: PositiveFloat = Field(
        0.1, description="preference: how strongly the model is held to the base model (beta of DPO, Rafailov et al. 2023)."
    )
    anchor: Anchor | None = Field(
        None, description="Language models: hold what the records do not ask for to the base model. Costs time, and no epsilon."
    )
    cache_dtype: Literal["float32", "float16"] = Field("float32", description="float16 halves the cache and is approximate.")
    gradient_checkpointing: bool = Field(
        False, description="Compute each layer's activations again in the backward pass: about a third slower, much less memory."
    )

    @model_validator(mode="after")
    def _there_is_something_to_average(self) -> Training:
        if self.iterate_average != "none" and self.local_steps == 1:
            raise PydanticCustomError("CFG-251", "training.iterate_average averages the steps of a round, but training.local_steps is 1.")
        return self


class Job(Section):
    """The whole job. ``sha256`` is the identity that sites approve."""

    schema_: Literal["fedethos/job/v1"] = Field("fedethos/job/v1", alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Name of the run folder.")
    task: Literal["text-classification", "tabular-classification"] | LanguageTask = Field(
        "text-classification", description="What the model learns."
    )
    model: Model
    lora: Lora = Field(default_factory=Lora)
    data: Data
    training: Training = Field(default_factory=Training)
    privacy: Privacy = Field(default_factory=Privacy)
    fairness: Fairness = Field(default_factory=Fairness)
    federation: Federation = Field(default_factory=Federation)
    robustness: Robustness = Field(default_factory=Robustness)
    policy: Policy | None = Field(None, description="Needed for what a job may not do by default, such as group-specific thresholds.")
    scenarios: list[RecordScenario] = Field(
        default_factory=list, max_length=MOST, description="Test records that every site counts apart, each with a metric and its limit."
    )
    simulation: Simulation = Field(default_factory=Simulation)

    @model_validator(mode="after")
    def _sections_agree(self) -> Job:
        if self.privacy.unit == "person" and self.data.person_id is None:
            raise PydanticCustomError(
                "DATA-118",
                "privacy.unit is person, but data.person_id is not mapped. Without it epsilon would protect a row, not a person.",
            )
        if self.simulation.site.caps is not None and self.privacy.mode == "none":
            raise PydanticCustomError("CFG-261", "simulation.site.caps is given, but under privacy.mode none no ledger counts anything.")
        if self.training.gradient_checkpointing and self.privacy.mode != "none" and self.privacy.engine == "opacus":
            raise PydanticCustomError(
                "CFG-252", "training.gradient_checkpointing needs privacy.engine: fused; Opacus' hooks fail under it."
            )
        if self.head_warmup_rounds > self.federation.rounds:
            raise PydanticCustomError("CFG-250", "training.head_warmup_rounds is larger than federation.rounds.")
        if self.center_head and self.privacy.mode == "none":
            raise PydanticCustomError("CFG-253", "training.center_head is a private release, but privacy.mode is none.")
        by = self.simulation.partition.by
        if self.simulation.partition.kind in ("dirichlet", "by-group") and by != "label" and by not in self.data.sensitive:
            raise PydanticCustomError("CFG-224", "simulation.partition.by is neither 'label' nor one of data.sensitive.")
        attackers = self.robustness.assumed_attackers
        if attackers is not None and self.federation.min_sites < 2 * attackers + 3:
            raise PydanticCustomError(
                "CFG-302",
                f"robustness.rule {self.robustness.rule} with {attackers} assumed attackers needs federation.min_sites of "
                f"{2 * attackers + 3} or more.",
            )
        return self

    @model_validator(mode="after")
    def _task_has_its_inputs_and_model(self) -> Job:
        tabular = self.task == "tabular-classification"
        texts = (self.data.text is not None) + (self.data.messages is not None)
        if texts != (not tabular) or (self.data.features is None) == tabular:
            raise PydanticCustomError(
                "CFG-270",
                "tabular-classification needs data.features, every other task data.text (a language model that or data.messages); "
                "one of them alone.",
            )
        if (self.model.path in (LINEAR, MLP)) != tabular:
            raise PydanticCustomError(
                "CFG-271", "tabular-classification trains builtin:linear or builtin:mlp, and no other task does (model.path)."
            )
        if tabular and self.aggregation != "fedavg":
            raise PydanticCustomError(
                "CFG-276", f"federation.aggregation {self.aggregation} is a rule for LoRA; a tabular model has none. Use fedavg or auto."
            )
        if tabular and (idle := self._set_for_nothing()):
            raise PydanticCustomError("CFG-277", f"These keys do nothing for tabular-classification; leave them out: {', '.join(idle)}.")
        return self

    @model_validator(mode="after")
    def _aggregation_fits(self) -> Job:
        if self.federation.server_optimizer != "none" and self.aggregation not in ("fedavg", "ffa"):
            raise PydanticCustomError(
                "CFG-290",
                "federation.server_optimizer needs aggregation fedavg or ffa: the other rules write A and B anew.",
            )
        ranks = [site.rank for site in self.federation.sites.values() if site.rank is not None]
        if ranks and self.aggregation != "flexlora":
            raise PydanticCustomError("CFG-291", "federation.sites.NAME.rank is for aggregation flexlora; other rules need one rank.")
        if ranks and max(ranks) > self.lora.r:
            raise PydanticCustomError("CFG-292", "federation.sites.NAME.rank is larger than lora.r, the rank of the global adapter.")
        return self

    def _set_for_nothing(self) -> list[str]:
        """Keys of adapters and texts that a tabular job sets to something else than their default."""
        training = self.training
        changed = {
            "lora": self.lora != Lora(),
            "model.sha256": self.model.sha256 is not None,
            "model.max_length": self.model.max_length != Model.model_fields["max_length"].default,
            "training.head_warmup_rounds": training.head_warmup_rounds not in ("auto", 0),
            "training.center_head": self.center_head,
            "training.head_learning_rate": training.head_learning_rate is not None,
            "training.cache_frozen_prefix": training.cache_frozen_prefix != "auto",
            "training.cache_dtype": training.cache_dtype != "float32",
            "training.gradient_checkpointing": training.gradient_checkpointing,
        }
        return [key for key, is_set in changed.items() if is_set]

    @model_validator(mode="after")
    def _language_model_has_its_answers(self) -> Job:
        check_language(self)
        return self

    @model_validator(mode="after")
    def _scenarios_can_be_counted(self) -> Job:
        check_scenarios(self)
        return self

    @model_validator(mode="after")
    def _several_labels_have_no_threshold(self) -> Job:
        if self.data.label.multiclass and self.fairness.thresholds != "fixed":
            raise PydanticCustomError(
                "CFG-364",
                "data.label.values has more than two labels, and one threshold does not choose among them. "
                "Set fairness.thresholds: fixed, which predicts the most likely label.",
            )
        if self.data.label.multiclass and self.fairness.strategy != "none":
            raise PydanticCustomError("CFG-364", "fairness.strategy steers two labels; data.label.values has more. Set it to none.")
        if self.data.label.multiclass and self.steering_rounds:
            raise PydanticCustomError(
                "CFG-364", f"fairness.loss {self.fairness.loss} reads counts of two labels; data.label.values has more. Choose another."
            )
        return self

    @model_validator(mode="after")
    def _augmentation_has_something_to_swap(self) -> Job:
        if self.fairness.augment == "counterfactual":
            check_augment(self.data, self.fairness.identity_terms)
        return self

    @model_validator(mode="after")
    def _fairness_acts_on_a_declared_attribute(self) -> Job:
        fairness = self.fairness
        check_intersections(self.data.sensitive, fairness.intersections)
        if fairness.attribute is not None and fairness.attribute not in self.attributes:
            raise PydanticCustomError("CFG-243", "fairness.attribute is neither one of data.sensitive nor of fairness.intersections.")
        acts = self.weighs_cells or fairness.strategy != "none" or self.training.sampling != "uniform"
        if not acts and fairness.group_constraint is None:
            return self
        if self.fairness_attribute is None:
            raise PydanticCustomError("CFG-311", "Weights and thresholds by group need a sensitive attribute under data.sensitive.")
        if fairness.attribute is None and len(self.data.sensitive) > 1:  # their order is not part of the job's hash
            raise PydanticCustomError(
                "CFG-314", "There are several sensitive attributes: name that of the weights and thresholds in fairness.attribute."
            )
        if fairness.cell_weights is not None:
            groups = [*self.attributes[self.fairness_attribute], UNKNOWN]
            check_cell_weights(fairness.cell_weights, groups=groups, labels=self.data.label.values, max_weight=fairness.max_weight)
        return self

    @model_validator(mode="after")
    def _loss_has_what_it_needs(self) -> Job:
        check_loss(self)
        return self

    @model_validator(mode="after")
    def _personal_adapters_make_sense(self) -> Job:
        check_personal(self)
        return self

    @model_validator(mode="after")
    def _strategy_has_what_it_steers_by(self) -> Job:
        check_strategy(self)
        return self

    @model_validator(mode="after")
    def _group_thresholds_are_allowed(self) -> Job:
        if self.fairness.group_constraint is None:
            return self
        if self.policy is None or not self.policy.allow_group_thresholds:
            raise PydanticCustomError(
                "CFG-312",
                "fairness.thresholds uses the sensitive attribute at decision time, and policy.allow_group_thresholds is not true. "
                "Treating people differently by group may be disparate treatment (in the US: Title VII, enforced by the EEOC, and the "
                "ECOA). Have it reviewed; this is not legal advice. Without it: fairness.thresholds: pooled.",
            )
        if self.fairness.thresholds == "equalized_odds" and not self.policy.allow_randomized_decisions:
            raise PydanticCustomError(
                "CFG-313",
                "fairness.thresholds equalized_odds leaves some decisions to a coin, for one threshold a group cannot equalise two "
                "rates, and policy.allow_randomized_decisions is not true. Deterministic: equal_opportunity or demographic_parity.",
            )
        return self

    @property
    def attributes(self) -> dict[str, list[str]]:
        """Everything that is measured by group: ``data.sensitive``, then ``fairness.intersections``; groups without ``unknown``."""
        return self.data.sensitive | crossed_categories(self.data.sensitive, self.fairness.intersections)

    @property
    def slices(self) -> dict[str, list[str]]:
        """The count tables of ``scenarios``, with their groups."""
        return {one.table: [MATCHING, OTHERS] for one in self.scenarios}

    @property
    def counted(self) -> dict[str, list[str]]:
        """Every table that a site counts by group: ``attributes``, then ``slices``."""
        return self.attributes | self.slices

    @property
    def fairness_attribute(self) -> str | None:
        """The attribute that weights and thresholds act on; None when the job declares none."""
        return self.fairness.attribute or next(iter(self.data.sensitive), None)

    @property
    def weighs_cells(self) -> bool:
        """Whether sites multiply clipped gradients by the weight of their cell."""
        fairness = self.fairness
        return steers_cells(fairness) or fairness.loss in WEIGHING_LOSSES or fairness.cell_weights is not None

    @property
    def personal_is_charged(self) -> bool:
        """Whether personal adapters train with noise, because counts of them leave the sites of a private job."""
        return self.privacy.mode != "none" and self.training.personal is not None and self.training.personal.release_counts

    @property
    def steps_in_round(self) -> int:
        """Steps that a site computes in a round: of the global adapter, and of its personal one."""
        training = self.training
        own = 0 if training.personal is None else training.personal.local_steps or training.local_steps
        return training.local_steps + own

    @property
    def charged_steps(self) -> int:
        """Private steps that a site is charged for in a round: of the global adapter, and of its personal one if that has noise."""
        return self.steps_in_round if self.personal_is_charged else self.training.local_steps

    @property
    def steering_rounds(self) -> range:
        """After which rounds strategy or loss ask for counts of the training people; what the last round gives steers nothing."""
        fairness = self.fairness
        if fairness.loss == "reweighing" and fairness.training_shares is None:
            return range(1)
        return range(fairness.every, self.federation.rounds, fairness.every) if fairness.steers else range(0)

    @property
    def is_language(self) -> bool:
        """Whether the model is a language model, which scores continuations of a prompt."""
        return self.task in LANGUAGE_TASKS

    @property
    def counts_responses(self) -> bool:
        """Whether the score table holds the losses of responses in the place of scores of a label (``fairness/responses.py``)."""
        return self.task == "causal-lm"

    @property
    def unit(self) -> Literal["person", "record"]:
        """The unit of privacy, with ``auto`` resolved."""
        if self.privacy.unit == "auto":
            return "person" if self.data.person_id else "record"
        return self.privacy.unit

    @property
    def head_warmup_rounds(self) -> int:
        """Rounds in which the head trains alone, with ``auto`` resolved."""
        if self.training.head_warmup_rounds != "auto":
            return self.training.head_warmup_rounds
        adapts = self.privacy.mode != "none" and self.task == "text-classification"
        return _WARMUP_ROUNDS if adapts and self.federation.rounds >= _ROUNDS_WITH_WARMUP else 0

    @property
    def center_head(self) -> bool:
        """Whether the head's input is centred, with ``auto`` resolved; under ``auto`` a model whose head does not allow it goes without."""
        if self.training.center_head != "auto":
            return self.training.center_head == "on"
        sizes = [plan.declared_size for plan in self.federation.sites.values()]
        few = bool(sizes) and all(size is not None and size <= _FEW_UNITS for size in sizes)
        return few and self.head_warmup_rounds > 0 and self.privacy.mode != "none"

    @property
    def rows_per_unit(self) -> int:
        """The most records that one unit of privacy takes part with."""
        return self.privacy.max_records_per_person if self.unit == "person" else 1

    @property
    def aggregation(self) -> Aggregation:
        """The aggregation rule, with ``auto`` resolved."""
        if self.federation.aggregation == "auto":
            return "fedavg" if self.privacy.mode == "none" or self.task == "tabular-classification" else "ffa"
        return self.federation.aggregation

    @property
    def server_learning_rate(self) -> float:
        """Step of the server optimizer, with null resolved."""
        usual = 1.0 if self.federation.server_optimizer == "fedavgm" else 0.01
        return self.federation.server_learning_rate or usual

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON form (sorted keys, no white space), so that layout and comments do not matter."""
        canonical = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

"""``job.yaml``: the one document that every site approves. Its SHA-256 names the job.

Strict pydantic models, one per section, every key with the field's standard name. Reading and overriding
the YAML is in ``fedethos.documents``; the records that ``data`` describes are read by ``fedethos.data``.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from fedethos.aggregation import Aggregation

UNKNOWN = "unknown"  # the group of a record whose sensitive attribute is missing

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are never echoed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class Model(Section):
    path: str = Field(description="A folder with config.json and *.safetensors, or asset:NAME (see `fedethos models list`).")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="Content hash of the folder; a mismatch is refused.")
    max_length: int = Field(128, ge=4, le=8192, description="Longest input in tokens; longer texts are cut.")


class Lora(Section):
    """PEFT's own names (``peft.LoraConfig``)."""

    r: int = Field(8, ge=1, le=256, description="Rank of the update.")
    lora_alpha: PositiveFloat = Field(16.0, description="Scale: the update is lora_alpha / r times B·A.")
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout before A. It costs accuracy under privacy.")
    target_modules: Literal["all-linear"] | list[str] = Field("all-linear", description="Linear layers that get an adapter.")
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="Only these transformer layers. Layers below the first one can be cached (training.cache_frozen_prefix)."
    )


class Label(Section):
    column: str = Field(description="Column that holds the label.")
    values: list[str] = Field(min_length=2, description="All labels, in class order.")
    favorable: str = Field(description="The outcome that is good for the person; rates are rates of this label.")

    @model_validator(mode="after")
    def _favorable_is_a_label(self) -> Label:
        if len(set(self.values)) != len(self.values):
            raise PydanticCustomError("CFG-213", "data.label.values names a label twice.")
        if self.favorable not in self.values:
            raise PydanticCustomError(
                "CFG-214",
                "data.label.favorable is not one of data.label.values. Selection rates need to know which outcome is good for the person.",
            )
        if len(self.values) > 2:
            raise PydanticCustomError("CFG-215", "data.label.values has more than two labels; this version measures two-class tasks.")
        return self

    @property
    def favorable_index(self) -> int:
        """Class index of the favorable label."""
        return self.values.index(self.favorable)


class Split(Section):
    """Shares of the people, not of the rows; drawn once by a salted hash, the same for ever."""

    train: Fraction = Field(0.7, description="Share of the people to train on.")
    validation: Fraction = Field(0.1, description="Share that sets the decision threshold and the early stop.")
    test: Fraction = Field(0.2, description="Share that the final metrics come from.")

    @model_validator(mode="after")
    def _sums_to_one(self) -> Split:
        if abs(self.train + self.validation + self.test - 1.0) > 1e-9:
            raise PydanticCustomError("CFG-216", "data.split does not sum to 1.")
        if min(self.train, self.validation, self.test) <= 0.0:
            raise PydanticCustomError(
                "CFG-217", "data.split gives nothing to one of train, validation and test. Each needs its own people."
            )
        return self


class Data(Section):
    """The data contract; in a simulation also where the records are."""

    path: str = Field(description="builtin:adult, a .csv/.data/.parquet/.jsonl file, or a Hugging Face dataset folder.")
    columns: list[str] | None = Field(None, description="Column names for a file without a header line.")
    na_values: list[str] = Field(default_factory=list, description="Marks that mean 'missing', such as '?'.")
    map: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="Per column: raw value to declared category, or a threshold such as '>=1' to a category.",
    )
    text: str | dict[Literal["column"], str] = Field(
        description="A template over columns, '{age} years old, {occupation}', or {column: NAME} for a text column as it is."
    )
    label: Label
    sensitive: dict[str, list[str]] = Field(
        default_factory=dict, description="Sensitive attributes with all their categories; a missing value is the group 'unknown'."
    )
    person_id: str | None = Field(None, description="Column that names the person; all rows of a person stay together.")
    split: Split = Field(default_factory=Split)
    split_salt: str | None = Field(None, description="Salt of the split's hash; null in a simulation: made from the seed.")
    limit: float | None = Field(None, gt=0.0, le=1.0, description="Use only so large a share of the people.")

    @model_validator(mode="after")
    def _categories_are_declared_once(self) -> Data:
        for attribute, categories in self.sensitive.items():
            if len(categories) < 2 or len(set(categories)) != len(categories):
                raise PydanticCustomError("CFG-218", f"data.sensitive.{attribute} needs at least two different categories.")
            if UNKNOWN in categories:
                raise PydanticCustomError("CFG-219", f"data.sensitive.{attribute} declares 'unknown', which stands for missing values.")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", attribute):
                raise PydanticCustomError("CFG-220", "A name under data.sensitive has characters other than letters, digits, _ . -")
        if isinstance(self.text, dict) and set(self.text) != {"column"}:
            raise PydanticCustomError("CFG-221", "data.text is a template or {column: NAME}.")
        return self


class Training(Section):
    local_steps: int = Field(20, ge=1, le=100_000, description="Optimizer steps per site and round.")
    batch_size: int = Field(64, ge=1, le=1_000_000, description="Expected units per step (Poisson); q = batch_size / declared size.")
    micro_batch_tokens: int = Field(
        8192, ge=1, description="Padded tokens per forward pass. It bounds memory; the mathematics does not change."
    )
    learning_rate: PositiveFloat = Field(2.0e-3, description="Of the adapters, at each site.")
    head_learning_rate: PositiveFloat | None = Field(None, description="For the classification head; null: learning_rate.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="At each site; its state is fresh in each round.")
    weight_decay: float = Field(0.0, ge=0.0, description="Decoupled weight decay of adamw, L2 penalty of sgd.")
    proximal_mu: float = Field(
        0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="FedProx: pull towards the round's global adapter; under privacy added after the noise.",
    )
    cache_frozen_prefix: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Compute what lies below the first adapted layer once per record. auto: when a whole layer does.",
    )
    cache_dtype: Literal["float32", "float16"] = Field("float32", description="float16 halves the cache and is approximate.")


class Metrics(Section):
    min_group_size: int = Field(11, ge=1, description="Smaller groups are not shown.")
    tolerance: PositiveFloat = Field(0.1, description="A fairness metric whose 95 % half-width is larger is 'not measurable'.")


class Privacy(Section):
    mode: Literal["none", "local"] = Field("local", description="local: each site adds its own noise. none: no protection.")
    unit: Literal["auto", "person", "record"] = Field("auto", description="auto: person when data.person_id is mapped, else record.")
    adjacency: Literal["add-remove", "replace-one"] = Field(
        "add-remove", description="What epsilon compares: data with and without one unit, or with one unit replaced (costs more)."
    )
    max_records_per_person: int = Field(
        4,
        ge=1,
        description="Under the unit person: the most records of one person that take part. Counts need more noise with more.",
    )
    epsilon: float | None = Field(8.0, gt=0.0, le=50.0, description="Per site, over the whole job. null only with mode: none.")
    delta: float = Field(1.0e-5, gt=0.0, lt=0.01, description="Chance that epsilon does not hold; well below one in the number of people.")
    max_grad_norm: PositiveFloat = Field(1.0, description="C: each unit's gradient is clipped to this L2 norm.")
    engine: Literal["fused", "opacus"] = Field(
        "fused", description="What bounds each unit's gradient: fused into the LoRA layers (fast), or Opacus' hooks. Same numbers."
    )
    secure_rng: Literal["auto", True, False] = Field("auto", description="auto: off in a simulation (marked as such), on in deployment.")
    metrics: Metrics = Field(default_factory=Metrics)

    @model_validator(mode="after")
    def _epsilon_belongs_to_a_mode(self) -> Privacy:
        if self.mode != "none" and self.epsilon is None:
            raise PydanticCustomError("CFG-222", "privacy.epsilon is null, but privacy.mode is not none.")
        return self


class Fairness(Section):
    thresholds: Literal["pooled", "fixed"] = Field(
        "pooled", description="pooled: one threshold from the pooled validation histogram at the base rate. fixed: a score of 0.5."
    )


class SitePlan(Section):
    weight: PositiveFloat = Field(1.0, description="Approved weight in the aggregation, before robustness.weight_cap.")
    declared_size: int | None = Field(None, ge=1, description="Training units that the site declares as public.")
    rank: int | None = Field(None, ge=1, description="flexlora: the site's own rank, at most lora.r; null: lora.r.")


class EarlyStop(Section):
    metric: Literal["worst_group_accuracy", "balanced_accuracy", "roc_auc", "accuracy"] = Field(
        "worst_group_accuracy", description="Watched on the validation people of all sites."
    )
    patience: int = Field(3, ge=1, description="Rounds without a gain of min_delta before the run stops.")
    min_delta: float = Field(0.0, ge=0.0, description="Smallest gain that counts.")


_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(s|m|h)$")


def _duration(value: object) -> object:
    """'90s', '30m' or '2h' to seconds; a number is seconds already."""
    match = _DURATION.match(value) if isinstance(value, str) else None
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else value


class Federation(Section):
    rounds: int = Field(5, ge=1, le=10_000, description="Epsilon is planned over all of them.")
    aggregation: Literal["auto"] | Aggregation = Field("auto", description="auto: ffa (A frozen) under privacy, fedavg without.")
    server_optimizer: Literal["none", "fedadam", "fedyogi", "fedadagrad", "fedavgm"] = Field(
        "none", description="Flower's own over the averaged adapters; with aggregation fedavg or ffa."
    )
    server_learning_rate: PositiveFloat | None = Field(None, description="Step of the server optimizer; null: 0.01, of fedavgm 1.")
    server_momentum: float = Field(0.9, ge=0.0, lt=1.0, description="fedavgm: share of the last step that goes on.")
    sites: dict[str, SitePlan] = Field(default_factory=dict, description="Approved sites; empty in a simulation.")
    min_sites: int = Field(3, ge=1, description="Quorum: a round with fewer valid replies fails.")
    fraction: float = Field(1.0, gt=0.0, le=1.0, description="Share of the sites asked to train in a round.")
    deadline: Annotated[float, Field(gt=0.0), BeforeValidator(_duration)] = Field(
        1800.0, description="How long a round waits for replies: seconds, or '90s', '30m', '2h'."
    )
    early_stop: EarlyStop | None = None


class Robustness(Section):
    max_update_norm: PositiveFloat | None = Field(None, description="A reply that moves the adapter further (L2) is refused.")
    weight_cap: float = Field(0.5, gt=0.0, le=1.0, description="No site weighs more than this share.")


class Partition(Section):
    kind: Literal["iid", "dirichlet", "by-column", "by-group"] = Field(
        "dirichlet", description="How the people are dealt to virtual sites."
    )
    by: str | None = Field(
        None, description="dirichlet, by-group: a sensitive attribute or 'label'. by-column: a column that names the site."
    )
    alpha: PositiveFloat = Field(0.5, description="dirichlet: smaller is more unequal.")

    @model_validator(mode="after")
    def _by_where_needed(self) -> Partition:
        if self.kind != "iid" and self.by is None:
            raise PydanticCustomError("CFG-223", f"simulation.partition.kind {self.kind} needs simulation.partition.by.")
        return self


class Simulation(Section):
    sites: int = Field(5, ge=1, le=10_000, description="Number of virtual sites.")
    partition: Partition = Field(default_factory=lambda: Partition(kind="iid"))
    seed: int = Field(7, ge=0, lt=2**63, description="Everything random in a simulation follows from it.")
    engine: Literal["inprocess"] = Field("inprocess", description="All sites in this process, one shared base model.")


class Job(Section):
    """The whole job. ``sha256`` is the identity that sites approve."""

    schema_: Literal["fedethos/job/v1"] = Field("fedethos/job/v1", alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Name of the run folder.")
    task: Literal["text-classification"] = Field("text-classification", description="What the model learns.")
    model: Model
    lora: Lora = Field(default_factory=Lora)
    data: Data
    training: Training = Field(default_factory=Training)
    privacy: Privacy = Field(default_factory=Privacy)
    fairness: Fairness = Field(default_factory=Fairness)
    federation: Federation = Field(default_factory=Federation)
    robustness: Robustness = Field(default_factory=Robustness)
    simulation: Simulation = Field(default_factory=Simulation)

    @model_validator(mode="after")
    def _sections_agree(self) -> Job:
        if self.privacy.unit == "person" and self.data.person_id is None:
            raise PydanticCustomError(
                "DATA-118",
                "privacy.unit is person, but data.person_id is not mapped. Without it epsilon would protect a row, not a person.",
            )
        by = self.simulation.partition.by
        if self.simulation.partition.kind in ("dirichlet", "by-group") and by != "label" and by not in self.data.sensitive:
            raise PydanticCustomError("CFG-224", "simulation.partition.by is neither 'label' nor one of data.sensitive.")
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

    @property
    def unit(self) -> Literal["person", "record"]:
        """The unit of privacy, with ``auto`` resolved."""
        if self.privacy.unit == "auto":
            return "person" if self.data.person_id else "record"
        return self.privacy.unit

    @property
    def rows_per_unit(self) -> int:
        """The most records that one unit of privacy takes part with."""
        return self.privacy.max_records_per_person if self.unit == "person" else 1

    @property
    def aggregation(self) -> Aggregation:
        """The aggregation rule, with ``auto`` resolved."""
        if self.federation.aggregation == "auto":
            return "fedavg" if self.privacy.mode == "none" else "ffa"
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

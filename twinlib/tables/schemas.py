"""The tables of the product. The data dictionary in docs/ is generated from here."""

from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DateType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from twinlib.tables.contracts import Column, Table

_text, _real, _int, _long, _flag, _time = StringType(), DoubleType(), IntegerType(), LongType(), BooleanType(), TimestampType()
_texts, _reals, _floats = ArrayType(_text), ArrayType(_real), ArrayType(FloatType())


def _patient() -> Column:
    return Column("patient_id", _text, "keyed pseudonym (HMAC-SHA256, 32 hexadecimal digits)", nullable=False)


def _provenance() -> tuple[Column, ...]:
    return (
        Column("source", _text, "name of the mapping that read the record", nullable=False),
        Column("file", _text, "source file, relative to the source's root, patient identifiers replaced by the pseudonym"),
        Column("line", _long, "line (text files) or record number (JSON, Parquet) in the file, from 1"),
        Column("available_at", _time, "instant at which the record became known (UTC); no fit of an earlier moment may use it", nullable=False),
        Column("quality", _texts, "quality flags, empty where nothing was noticed", nullable=False),
    )


SIGNALS = ArrayType(
    StructType([StructField("signal", _text, False), StructField("minutes", _reals, True), StructField("values", _floats, False)])
)
INPUTS = ArrayType(
    StructType(
        [
            StructField("input", _text, False),
            StructField("minutes", _reals, False),
            StructField("amounts", _floats, False),
            StructField("durations", _floats, False),
            StructField("labels", _texts, False),
        ]
    )
)
COVARIATES = ArrayType(StructType([StructField("name", _text, False), StructField("value", _real, False), StructField("assumed", _flag, False)]))

PATIENTS = Table(
    "patients",
    "One row per patient seen in any source, with stable attributes.",
    ("patient_id",),
    (
        _patient(),
        Column("sex", _text, "administrative sex", values=("female", "male", "other", "unknown")),
        Column("birth_date", DateType(), "date of birth (first of July where only the year is known)"),
        Column("sources", _texts, "sources in which the patient was seen, sorted", nullable=False),
    ),
)

OBSERVATIONS = Table(
    "observations",
    "One row per accepted measurement, in the signal's canonical unit.",
    ("patient_id", "signal", "time"),
    (
        _patient(),
        Column("signal", _text, "what was measured (see twinlib/fusion/vocabulary.yaml: glucose, body_weight, …)", nullable=False),
        Column("time", _time, "instant of the measurement (UTC)", nullable=False),
        Column("value", _real, "value in the signal's canonical unit (glucose mg/dL, body_weight kg, …)", "by signal", nullable=False),
        Column("utc_offset_minutes", _int, "local time minus UTC at the measurement, where known", "min"),
        Column("device", _text, "keyed pseudonym of the device that measured (12 hexadecimal digits), where the source names it"),
        *_provenance(),
    ),
)

EXPOSURES = Table(
    "exposures",
    "One row per accepted dose, infusion rate or intake.",
    ("patient_id", "agent", "start", "source", "file", "line"),  # several foods of one meal share an instant
    (
        _patient(),
        Column("agent", _text, "what was given or eaten: insulin_bolus, insulin_basal, insulin_long_acting, carbohydrate, …", nullable=False),
        Column("kind", _text, "how `amount` is to be read", nullable=False, values=("dose", "rate", "treatment")),
        Column("start", _time, "start (UTC)", nullable=False),
        Column("end", _time, "end (UTC) where the source states one; a rate without end holds until the next rate; the end of a treatment may have become known later than `available_at`"),
        Column("amount", _real, "dose in the agent's canonical unit (U, g), its rate per hour (U/h), or 1 for a treatment in force", "by agent and kind", nullable=False),
        Column("label", _text, "free label of the source in lower case, such as the meal (breakfast, lunch, …)"),
        Column("utc_offset_minutes", _int, "local time minus UTC at the start, where known", "min"),
        *_provenance(),
    ),
)

EVENTS = Table(
    "events",
    "One row per accepted condition, visit or death.",
    ("patient_id", "event", "start", "source", "file", "line"),  # several visits may begin at one instant
    (
        _patient(),
        Column("event", _text, "what happened or was in force (see twinlib/fusion/vocabulary_ehr.yaml: diabetes_type_2, visit_inpatient, death, …)", nullable=False),
        Column("start", _time, "start or onset (UTC)", nullable=False),
        Column("end", _time, "end (UTC) where the source states one; it may have become known later than `available_at`"),
        Column("label", _text, "name or code in the source, in lower case"),
        Column("utc_offset_minutes", _int, "local time minus UTC at the start, where known", "min"),
        *_provenance(),
    ),
)

IDENTITIES = Table(
    "identities",
    "One row per person of a source who was found to be, or might be, a person known under another id.",
    ("patient_id", "source_patient_id", "source"),
    (
        Column("patient_id", _text, "pseudonym that stands in all other tables", nullable=False),
        Column("source_patient_id", _text, "pseudonym of the person's own id in the source", nullable=False),
        Column("source", _text, "name of the source", nullable=False),
        Column("status", _text, "linked: one person; conflict: the evidence contradicts itself and nothing was merged", nullable=False, values=("linked", "conflict")),
        Column("reason", _text, "crosswalk, identifier, or for a conflict shared_identifier (one identifier, two people of a source), chain (links lead to two people of a source), crosswalk (one id, two persons)", nullable=False),
    ),
)

QUARANTINE = Table(
    "quarantine",
    "One row per refused record, verbatim, with the reason.",
    ("source", "file", "line", "part"),
    (
        Column("source", _text, "name of the mapping that read the record", nullable=False),
        Column("file", _text, "source file, patient identifiers replaced by the pseudonym"),
        Column("line", _long, "line or record number in the file, from 1"),
        Column("part", _int, "number of the record within its line, from 1, where a line holds several (wide files)"),
        Column("patient_id", _text, "keyed pseudonym where the patient is known"),
        Column("reason", _text, "reason code: unparsable_time, unknown_unit, out_of_range, negative_amount, …", nullable=False),
        Column("detail", _text, "column and expectation that the record failed", nullable=False),
        Column("record", _text, "the record's fields as JSON text, as they stood in the file (patient identifiers replaced)", nullable=False),
    ),
)

INGEST_COUNTS = Table(
    "ingest_counts",
    "One row per source: conservation of records, rows_read = accepted + duplicates + quarantined.",
    ("source",),
    (
        Column("source", _text, "name of the mapping", nullable=False),
        Column("files", _long, "files read", nullable=False),
        Column("rows_ignored", _long, "rows that the mapping declares to be of no interest, or whose code the vocabulary does not know (not part of rows_read)", nullable=False),
        Column("rows_read", _long, "records that the mapping selects", nullable=False),
        Column("accepted", _long, "records that stand in observations, exposures or patients", nullable=False),
        Column("duplicates", _long, "exact repetitions, and losers of a conflict at the same instant", nullable=False),
        Column("quarantined", _long, "records that stand in quarantine", nullable=False),
    ),
)

LANDINGS = Table(
    "landings",
    "One row per source and file that came by the landing zone (`ingest --follow`).",
    ("source", "file"),
    (
        Column("source", _text, "name of the mapping", nullable=False),
        Column("file", _text, "file, relative to the source's root, patient identifiers replaced by the pseudonym", nullable=False),
        Column("stream", _text, "identity of the stream's checkpoint", nullable=False),
        Column("batch", _long, "batch of the stream in which the file was read", nullable=False),
        Column("files", _long, "1, or 0 where the file is counted under another source of the same layout", nullable=False),
        Column("rows_ignored", _long, "rows that the mapping declares to be of no interest", nullable=False),
        Column("rows_read", _long, "records that the mapping selects", nullable=False),
        Column("quarantined", _long, "records that stand in quarantine", nullable=False),
    ),
)

SENSOR_QUALITY = Table(
    "sensor_quality",
    "One row per run of ingest, source and signal: how good the accepted readings are.",
    ("run_id", "source", "signal"),
    (
        Column("run_id", _text, "the run (table runs)", nullable=False),
        Column("source", _text, "name of the mapping that read the records", nullable=False),
        Column("signal", _text, "what was measured", nullable=False),
        Column("patients", _long, "patients with a reading", nullable=False),
        Column("readings", _long, "accepted readings", nullable=False),
        Column("flagged", _long, "readings with any quality flag", nullable=False),
        Column("left_out", _long, "readings with a flag that keeps them out of fits (episodes.leave_out)", nullable=False),
        Column("flags", MapType(_text, _long), "readings by quality flag", nullable=False),
        Column("spacing_minutes", _real, "usual time between readings: median over patients; null where the signal is no sensor's", "min"),
        Column("wear_fraction", _real, "share of the hours from each patient's first reading to the last that hold one", "1"),
    ),
)

TIMELINES = Table(
    "timelines",
    "One row per patient and episode: everything that a fit needs, packed.",
    ("patient_id", "model", "episode"),
    (
        _patient(),
        Column("model", _text, "twin model that the row is packed for", nullable=False),
        Column("episode", _text, "local date of the episode's first day (YYYY-MM-DD)", nullable=False),
        Column("start", _time, "instant of minute 0 (UTC): local midnight of the first day", nullable=False),
        Column("minutes", _int, "length of the episode", "min", nullable=False),
        Column("step_minutes", _int, "grid of the gridded signals; slot k stands for minute k*step and holds the readings within half a step of it", "min", nullable=False),
        Column("utc_offset_minutes", _int, "local time minus UTC at the start", "min", nullable=False),
        Column("signals", SIGNALS, "observed signals in the model's units; minutes from the start, null = on the grid; NaN = missing", nullable=False),
        Column("inputs", INPUTS, "events by agent: minute from the start, total amount in the model's unit, duration in minutes (0 = at once), label", nullable=False),
        Column("covariates", COVARIATES, "as-of values at the start in canonical units; assumed = none was known: the stand-in, or NaN without one", nullable=False),
        Column("wear_fraction", _real, "share of the whole episode that the sensor was worn: readings times their usual spacing (median, 5 to 15 min); null without a sensor", "1"),
        Column("status", _text, "whether the row may be fitted", nullable=False, values=("ready", "insufficient_data")),
        Column("reason", _text, "why not, where it may not"),
        Column("content_hash", _text, "hash of all that the fit reads", nullable=False),
    ),
)

def _version() -> tuple[Column, ...]:
    return (
        Column("model", _text, "twin model", nullable=False),
        Column("prior_version", _text, "version of the prior", nullable=False),
    )


POPULATIONS = Table(
    "populations",
    "Prior versions in long form: one row per model, version and parameter.",
    ("model", "prior_version", "parameter"),
    (
        *_version(),
        Column("parameter", _text, "parameter", nullable=False),
        Column("unit", _text, "unit of the parameter", nullable=False),
        Column("transform", _text, "scale on which the prior is normal", nullable=False, values=("log", "identity", "logit")),
        Column("median", _real, "prior median on the natural scale, of a patient at the covariates' references", "by parameter", nullable=False),
        Column("sd", _real, "prior standard deviation on the transformed scale; 0 where all patients share the value", nullable=False),
        Column("source", _text, "where the prior comes from", nullable=False),
        Column("level", _text, "who varies", values=("population", "patient", "occasion")),
        Column("mean", _real, "prior mean on the transformed scale"),
        Column("covariance", _reals, "the parameter's row of the covariance of a patient's episode, in the order of the fitted parameters"),
        Column("mean_se", _real, "standard error of the mean; null where it is fixed or the data do not identify it"),
        Column("patient_variance", _real, "learnt variance between patients, without that between components and episodes"),
        Column("patient_variance_se", _real, "its standard error; null where it is fixed or the data do not identify it"),
        Column("occasion_variance", _real, "learnt variance between the episodes of a patient"),
        Column("fixed", _flag, "not learnt"),
        Column("shrinkage", _real, "1 - SD of the patients' posterior means over SD between patients: near 1 = the data say little of single patients", "1"),
        Column("eta_mean", _real, "mean over patients of their posterior mean less what is expected of them; 0 where the model fits"),
        Column("eta_sd", _real, "standard deviation of the same"),
    ),
)

POPULATION_EFFECTS = Table(
    "population_effects",
    "Covariates' effects: one row per model, version, parameter and column of the regression.",
    ("model", "prior_version", "parameter", "covariate", "kind", "reference", "level"),
    (
        *_version(),
        Column("parameter", _text, "parameter", nullable=False),
        Column("covariate", _text, "covariate", nullable=False),
        Column("kind", _text, "how it enters", nullable=False, values=("linear", "log", "below", "category")),
        Column("reference", _real, "value without effect; bound of `below`", "by covariate", nullable=False),
        Column("level", _real, "value of a category that has this effect", "by covariate"),
        Column("share", _real, "share of patients with the category or below the bound; stands in where the covariate is missing", "1", nullable=False),
        Column("term", _int, "order of the column", nullable=False),
        Column("coefficient", _real, "change of the parameter on the transformed scale", nullable=False),
        Column("coefficient_se", _real, "standard error; null where it is fixed or the data do not identify it"),
        Column("fixed", _flag, "given, not learnt", nullable=False),
        Column("patients_missing", _long, "patients without a value", nullable=False),
    ),
)

POPULATION_FITS = Table(
    "population_fits",
    "One row per model and version that was learnt: how well, from whom, and how.",
    ("model", "prior_version"),
    (
        *_version(),
        Column("status", _text, "whether the version can be used", nullable=False, values=("converged", "not_converged", "diverged", "singular_omega")),
        Column("reason", _text, "why not"),
        Column("learnt_at", _time, "when (UTC)", nullable=False),
        Column("patients", _long, "patients learnt from", nullable=False),
        Column("patients_left_out", _long, "patients of these without a posterior (see population_members)", nullable=False),
        Column("patients_known", _long, "patients with data; more than `patients` where a stratified sample was drawn", nullable=False),
        Column("readings", _long, "readings used", nullable=False),
        Column("iterations", _int, "passes over the data", nullable=False),
        Column("minus_two_log_likelihood", _real, "-2 log marginal likelihood by importance sampling"),
        Column("minus_two_log_likelihood_se", _real, "standard error of its sampling"),
        Column("parameters", _int, "free parameters", nullable=False),
        Column("aic", _real, "Akaike's criterion"),
        Column("bic", _real, "Bayes' criterion, patients as the sample size"),
        Column("unidentified", _texts, "free parameters of which the data say nothing: their values mean nothing"),
        Column("phenotypes", _int, "components of the mixture", nullable=False),
        Column("bic_by_phenotypes", _reals, "BIC of 1, 2, ... components, as far as tried", nullable=False),
        Column("settings", _text, "the `learn` part of the configuration as JSON", nullable=False),
        Column("model_hash", _text, "hash of the model's equations", nullable=False),
    ),
)

POPULATION_TRACE = Table(
    "population_trace",
    "One row per iteration of learning.",
    ("model", "prior_version", "phenotypes", "iteration"),
    (
        *_version(),
        Column("phenotypes", _int, "components of the mixture", nullable=False),
        Column("iteration", _int, "pass over the data, from 1", nullable=False),
        Column("patients", _long, "patients in the pass", nullable=False),
        Column("minus_two_log_likelihood", _real, "under the parameters before this iteration's step", nullable=False),
        Column("change", _real, "largest change of a free parameter on its transformed scale", nullable=False),
        Column("parameters", MapType(_text, _real), "medians, SDs and shared values before the step", nullable=False),
    ),
)

PHENOTYPES = Table(
    "phenotypes",
    "One row per component of a learnt mixture and parameter: the sub-populations described.",
    ("model", "prior_version", "component", "parameter"),
    (
        *_version(),
        Column("component", _int, "component, from 1, the largest first", nullable=False),
        Column("weight", _real, "share of the population", "1", nullable=False),
        Column("parameter", _text, "parameter", nullable=False),
        Column("unit", _text, "unit of the parameter", nullable=False),
        Column("median", _real, "median on the natural scale", "by parameter", nullable=False),
        Column("distance", _real, "mean less the population's mean, in SDs between patients of one component", nullable=False),
    ),
)

POPULATION_MEMBERS = Table(
    "population_members",
    "One row per patient, model and version: how the patient lies in the learnt population.",
    ("patient_id", "model", "prior_version"),
    (
        _patient(),
        *_version(),
        Column("status", _text, "whether the patient has a posterior", nullable=False, values=("used", "left_out")),
        Column("reason", _text, "why not"),
        Column("learnt_from", _flag, "whether the version was learnt from this patient", nullable=False),
        Column("episodes", _int, "episodes", nullable=False),
        Column("readings", _long, "readings", nullable=False),
        Column("log_evidence", _real, "log marginal likelihood of all episodes"),
        Column("log_evidence_se", _real, "its standard error"),
        Column("parameters", _texts, "names, the order of eta and eta_sd", nullable=False),
        Column("eta", _reals, "posterior mean less what the patient's component and covariates let expect, on the transformed scale"),
        Column("eta_sd", _reals, "posterior SD on the transformed scale"),
        Column("phenotype", _int, "most probable component, from 1"),
        Column("phenotype_probabilities", _reals, "probability of every component", "1"),
    ),
)

MODEL_COMPARISONS = Table(
    "model_comparisons",
    "One row per patient and candidate (a model under a prior): which suits the patient, by evidence on the same readings.",
    ("patient_id", "model", "prior_version", "candidate", "candidate_version"),
    (
        _patient(),
        *_version(),
        Column("candidate", _text, "model that is compared, the learnt one among them", nullable=False),
        Column("candidate_version", _text, "version of the candidate's prior", nullable=False),
        Column("status", _text, "whether all candidates have evidence", nullable=False, values=("compared", "incomplete")),
        Column("reason", _text, "why this candidate has none"),
        Column("readings", _long, "readings", nullable=False),
        Column("log_evidence", _real, "log marginal likelihood of all episodes"),
        Column("log_evidence_se", _real, "its standard error"),
        Column("log_bayes_factor", _real, "log evidence less that of the learnt model"),
        Column("probability", _real, "probability of the candidate, all equally probable before the readings", "1"),
    ),
)

TWINS = Table(
    "twins",
    "One row per patient and episode: the fitted twin, or the status that says why there is none.",
    ("patient_id", "model", "episode"),
    (
        _patient(),
        Column("model", _text, "twin model", nullable=False),
        Column("episode", _text, "episode of the timeline", nullable=False),
        Column("status", _text, "outcome of the fit", nullable=False,
               values=("converged", "not_converged", "insufficient_data", "failed")),
        Column("reason", _text, "why not, where not converged"),
        Column("n_observations", _int, "readings used"),
        Column("last_reading", _time, "instant of the last reading used (UTC)"),
        Column("parameters", _texts, "names of the fitted parameters, the order of mode and covariance"),
        Column("mode", _reals, "posterior mode on the transformed scale"),
        Column("covariance", _reals, "Laplace covariance on the transformed scale, row by row; with the likelihood's power, as the draws"),
        Column("log_posterior", _real, "log of likelihood times prior at the mode"),
        Column("log_evidence", _real, "log marginal likelihood by importance sampling; null where draws are from a power of the likelihood"),
        Column("log_evidence_se", _real, "standard error of log_evidence"),
        Column("spectrum", _reals, "posterior variance along its principal directions in units of the prior, ascending: near 0 = the data decide, near 1 = the prior does"),
        Column("pareto_k", _real, "Pareto shape of the importance ratios; the draws can be trusted below 0.7"),
        Column("effective_draws", _real, "effective number of posterior draws"),
        Column("draws", _reals, "equally weighted posterior draws on the transformed scale, draw by draw"),
        Column("iterations", _int, "Levenberg-Marquardt iterations"),
        Column("fit_rmse", _real, "root mean square of observed minus smoothed signal", "of the signal"),
        Column("fit_mard_percent", _real, "mean absolute relative difference of the smoothed signal", "%"),
        Column("forecast_rmse", _real, "root mean square error of predicting each reading from those before it", "of the signal"),
        Column("numerical_error", _real, "largest change of the replayed signal when the step is halved", "of the signal"),
        Column("timeline_hash", _text, "content_hash of the timeline that was fitted", nullable=False),
        Column("model_version", _text, "version of the model, and hash of its equations, the fit's settings and the seed", nullable=False),
        Column("prior_version", _text, "version of the prior", nullable=False),
    ),
)

TWIN_PARAMETERS = Table(
    "twin_parameters",
    "One row per twin and parameter: what analysts read.",
    ("patient_id", "model", "episode", "parameter"),
    (
        _patient(),
        Column("model", _text, "twin model", nullable=False),
        Column("episode", _text, "episode", nullable=False),
        Column("parameter", _text, "parameter", nullable=False),
        Column("unit", _text, "unit of the parameter", nullable=False),
        Column("mean", _real, "posterior mean", "by parameter", nullable=False),
        Column("sd", _real, "posterior standard deviation", "by parameter", nullable=False),
        Column("q05", _real, "5 % quantile", "by parameter", nullable=False),
        Column("q50", _real, "median", "by parameter", nullable=False),
        Column("q95", _real, "95 % quantile", "by parameter", nullable=False),
        Column("shrinkage", _real, "posterior variance over prior variance on the transformed scale: 0 = the data decide, 1 = the prior does", "1", nullable=False),
        Column("identified", _flag, "shrinkage below one half", nullable=False),
    ),
)

TWIN_CHECKS = Table(
    "twin_checks",
    "One row per twin: how probable its newest readings were under the twin of the night before.",
    ("patient_id", "model", "episode"),
    (
        _patient(),
        Column("model", _text, "twin model", nullable=False),
        Column("episode", _text, "episode with the new readings", nullable=False),
        Column("status", _text, "whether there is an answer", nullable=False, values=("checked", "not_comparable", "failed")),
        Column("reason", _text, "why not"),
        Column("against_episode", _text, "episode of the twin that had to foretell them", nullable=False),
        Column("against_timeline_hash", _text, "content hash of the timeline that it knew", nullable=False),
        Column("new_readings", _int, "readings after the last one that it knew", nullable=False),
        Column("p_parameters", _real, "probability of readings that ask for as large a change of the parameters, were the patient the same", "1"),
        Column("p_noise", _real, "probability of readings that scatter as much about any parameters; null where there are too few", "1"),
        Column("changed", _flag, "p_parameters below the configured rate of false alarms: the patient's physiology has changed"),
        Column("noisier", _flag, "p_noise below it: sensor, records or model no longer fit; `changed` then says little"),
        Column("parameter", _text, "the parameter that the new readings move most"),
        Column("z", _real, "its change in standard deviations of what the same patient's readings would do", "1"),
        Column("before", _real, "the parameter in last night's twin", "by parameter"),
        Column("after", _real, "the same with the new readings", "by parameter"),
        Column("timeline_hash", _text, "content hash of the timeline with the new readings", nullable=False),
    ),
)

OUTCOMES = Table(
    "outcomes",
    "One row per patient, episode, scenario and outcome: what happened and what would have happened.",
    ("patient_id", "model", "episode", "scenario", "outcome"),
    (
        _patient(),
        Column("model", _text, "twin model", nullable=False),
        Column("episode", _text, "episode", nullable=False),
        Column("scenario", _text, "scenario", nullable=False),
        Column("outcome", _text, "outcome (docs/scenarios.md): tir, tbr_70, mean_glucose, c_max, …", nullable=False),
        Column("unit", _text, "unit of the outcome", nullable=False),
        Column("mode", _text, "world of both arms", nullable=False, values=("counterfactual", "new_day", "forecast")),
        Column("status", _text, "whether there is a value", nullable=False, values=("ok", "insufficient_data", "not_applicable", "no_twin")),
        Column("reason", _text, "why not, where there is none"),
        Column("factual", _real, "outcome of the observed readings; of the twin's factual arm (mean) where there are none", "by outcome"),
        Column("counterfactual_mean", _real, "posterior mean under the scenario", "by outcome"),
        Column("counterfactual_q05", _real, "5 % quantile", "by outcome"),
        Column("counterfactual_q95", _real, "95 % quantile", "by outcome"),
        Column("effect_mean", _real, "posterior mean of counterfactual minus factual", "by outcome"),
        Column("effect_q05", _real, "5 % quantile", "by outcome"),
        Column("effect_q95", _real, "95 % quantile", "by outcome"),
        Column("probability_of_benefit", _real, "share of draws in which the outcome improves; null where neither direction is better", "1"),
        Column("probability_of_harm", _real, "share of draws in which it worsens", "1"),
        Column("extrapolation", _text, "in what the scenario leaves the patient's recorded range; null where it does not"),
        Column("effect_draws", _floats, "effect in every posterior draw (kept for cohort intervals)", "by outcome"),
        Column("factual_draws", _floats, "factual outcome in every draw; null where it is the same in all", "by outcome"),
        Column("draws", _int, "posterior draws used"),
        Column("work_hash", _text, "hash of twin, scenario and settings behind the row", nullable=False),
    ),
)

RECOMMENDATIONS = Table(
    "recommendations",
    "One row per patient and configured recommendation: the best safe scenario, or no change.",
    ("patient_id", "model", "recommendation"),
    (
        _patient(),
        Column("model", _text, "twin model", nullable=False),
        Column("recommendation", _text, "name in the configuration", nullable=False),
        Column("objective", _text, "outcome to improve", nullable=False),
        Column("unit", _text, "unit of the objective", nullable=False),
        Column("status", _text, "what is advised", nullable=False, values=("change", "no_change", "insufficient_data")),
        Column("reason", _text, "why no change"),
        Column("scenario", _text, "the scenario that is advised; null = no change"),
        Column("best", _text, "the safe scenario with the greatest expected gain, whether or not it is advised"),
        Column("factual", _real, "the objective as it is, mean over the patient's episodes", "by objective"),
        Column("gain_mean", _real, "expected gain of the best scenario, positive = better", "by objective"),
        Column("gain_q05", _real, "5 % quantile", "by objective"),
        Column("gain_q95", _real, "95 % quantile", "by objective"),
        Column("probability_beats_current", _real, "probability that the best scenario is better than current care", "1"),
        Column("probability_best", _real, "probability that no safe scenario, nor current care, is better than it", "1"),
        Column("n_policies", _int, "scenarios with a value", nullable=False),
        Column("n_safe", _int, "those that meet all safety constraints", nullable=False),
        Column("extrapolation", _text, "in what the best scenario leaves the patient's recorded range"),
    ),
)


def _group() -> tuple[Column, ...]:
    return (
        Column("cohort", _text, "cohort", nullable=False),
        Column("subgroup", _text, "subgroup of the cohort: all, or attribute=value", nullable=False),
    )


def _counts() -> tuple[Column, ...]:
    return (
        Column("suppressed", _flag, "whether the row is withheld because its count, or one that it gives away, is too small", nullable=False),
        Column("n_all", _long, "all patients; null where suppressed"),
        Column("n_matched", _long, "patients in the group; null where suppressed"),
        Column("n_with_twin", _long, "those of them with a converged twin; null where suppressed"),
        Column("n_patients", _long, "those of them with a value; null where suppressed"),
    )


COHORT_EFFECTS = Table(
    "cohort_effects",
    "One row per cohort, subgroup, scenario and outcome: the mean effect over patients.",
    ("cohort", "subgroup", "scenario", "outcome"),
    (
        *_group(),
        Column("scenario", _text, "scenario", nullable=False),
        Column("outcome", _text, "outcome", nullable=False),
        Column("unit", _text, "unit of the outcome", nullable=False),
        *_counts(),
        Column("factual_mean", _real, "mean of the observed outcome", "by outcome"),
        Column("counterfactual_mean", _real, "mean under the scenario", "by outcome"),
        Column("effect_mean", _real, "mean effect", "by outcome"),
        Column("effect_q05", _real, "5 % quantile of the mean effect over posterior draws and resampled patients", "by outcome"),
        Column("effect_q95", _real, "95 % quantile", "by outcome"),
        Column("p_value", _real, "two-sided tail probability of no mean effect; 1 where there is exactly none", "1"),
        Column("q_value", _real, "false discovery rate over all rows of the table (Benjamini and Hochberg)", "1"),
        Column("comparisons", _long, "rows that the q-value takes into account"),
        Column("share_benefiting", _real, "expected share of patients for whom the outcome improves: mean probability of benefit", "1"),
        Column("share_harmed", _real, "expected share for whom it worsens", "1"),
        Column("target_difference", _real, "expected difference of the share of patients on the outcome's target", "%"),
        Column("target_difference_q05", _real, "5 % quantile", "%"),
        Column("target_difference_q95", _real, "95 % quantile", "%"),
        Column("number_needed_to_treat", _real, "patients for one more on target, 100/target_difference; negative: for one fewer", "1"),
    ),
)

COHORT_POLICIES = Table(
    "cohort_policies",
    "One row per cohort, subgroup and recommendation: what personalised advice gains over one scenario for all.",
    ("cohort", "subgroup", "recommendation"),
    (
        *_group(),
        Column("recommendation", _text, "name in the configuration", nullable=False),
        Column("objective", _text, "outcome to improve", nullable=False),
        Column("unit", _text, "unit of the objective", nullable=False),
        *_counts(),
        Column("n_changed", _long, "patients who are advised a change; null where suppressed"),
        Column("one_size", _text, "the one scenario that would be best for all; null = none beats no change"),
        *[
            Column(f"{name}_{part}", _real, f"{what}, {how}", "by objective")
            for name, what in (
                ("gain_personalised", "mean gain of following the advice"), ("gain_one_size", "mean gain of the one scenario for all"),
                ("gain_of_personalising", "mean gain of the former over the latter"),
            )
            for part, how in (("mean", "expected"), ("q05", "5 % quantile"), ("q95", "95 % quantile"))
        ],
    ),
)

RUNS = Table(
    "runs",
    "One row per job run and stage.",
    ("run_id", "stage"),
    (
        Column("run_id", _text, "UTC start of the run and a random suffix", nullable=False),
        Column("stage", _text, "generate, ingest, follow, fuse, learn, fit, simulate, recommend, effects", nullable=False),
        Column("status", _text, "what the stage did", nullable=False, values=("done", "unchanged", "failed")),
        Column("started_at", _time, "start (UTC)", nullable=False),
        Column("seconds", _real, "duration", "s", nullable=False),
        Column("config_hash", _text, "hash of the resolved configuration", nullable=False),
        Column("input_hash", _text, "fingerprint of the inputs of the stage: files with size and time, or table versions", nullable=False),
        Column("counts", MapType(_text, _long), "counts of the stage: rows, patients, statuses", nullable=False),
        Column("message", _text, "error message of a failed stage"),
        Column("sequence", _long, "number of the row, rising by one whatever the clock says"),
        Column("metrics", MapType(_text, _real),
               "what it took: tasks, task_seconds, jvm_cpu_seconds, gc_seconds, skew (longest task over the median one), rows_read, "
               "rows_written, rows_per_second, shuffle_mb, spill_mb, peak_jvm_mb, peak_python_mb; engine_seconds and compile_seconds of a fit"),
        Column("table_versions", MapType(_text, _text), "version of every table that the stage wrote, or found up to date"),
    ),
)

ALERTS = Table(
    "alerts",
    "One row per threshold of the configuration (`alerts`) that a run exceeded.",
    ("run_id", "alert", "subject"),
    (
        Column("run_id", _text, "run", nullable=False),
        Column("alert", _text, "what was exceeded", nullable=False, values=("quarantined_share", "failed_fit_share", "prior_drift")),
        Column("subject", _text, "source, model or parameter that it was seen in", nullable=False),
        Column("value", _real, "what was found", "by alert", nullable=False),
        Column("threshold", _real, "what is allowed", "by alert", nullable=False),
        Column("raised_at", _time, "instant (UTC)", nullable=False),
    ),
)

FORGOTTEN = Table(
    "forgotten",
    "One row per patient who has withdrawn: keeps the patient out of later ingests.",
    ("tombstone",),
    (
        Column("tombstone", _text, "keyed hash of the pseudonym (HMAC-SHA256), which leads back to no other table", nullable=False),
        Column("forgotten_at", _time, "instant (UTC)", nullable=False),
    ),
)

PROMOTIONS = Table(
    "promotions",
    "One row per promotion of a prior version: the newest of a model is the one that nights use (`prior_version: promoted`).",
    ("model", "sequence"),
    (
        Column("model", _text, "twin model", nullable=False),
        Column("sequence", _long, "number of the promotion, from 1", nullable=False),
        Column("prior_version", _text, "version promoted", nullable=False),
        Column("replaces", _text, "version that it follows", nullable=False),
        Column("comment", _text, "why", nullable=False),
        Column("promoted_at", _time, "instant (UTC)", nullable=False),
    ),
)

TABLES = {
    t.name: t
    for t in (
        PATIENTS, OBSERVATIONS, EXPOSURES, EVENTS, IDENTITIES, QUARANTINE, INGEST_COUNTS, LANDINGS, SENSOR_QUALITY, TIMELINES,
        POPULATIONS, POPULATION_EFFECTS, POPULATION_FITS, POPULATION_TRACE, PHENOTYPES, POPULATION_MEMBERS, MODEL_COMPARISONS,
        TWINS, TWIN_PARAMETERS, TWIN_CHECKS, OUTCOMES, RECOMMENDATIONS, COHORT_EFFECTS, COHORT_POLICIES, RUNS, ALERTS, FORGOTTEN, PROMOTIONS,
    )
}

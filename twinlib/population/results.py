"""What was learnt, as a prior for fits and as rows of tables."""

from __future__ import annotations

import hashlib
from datetime import datetime

import numpy as np

from twinlib.engine.contract import Model
from twinlib.population import priors
from twinlib.population.estimate import Estimate, population_level
from twinlib.population.learning import Learning, settings_text
from twinlib.population.patients import occasion_columns


def prior(learning: Learning) -> priors.Prior:
    """The learnt population as the normal prior of one episode: a mixture by its first two moments, episodes' deviations added.

    The version's name is a hash of all that it says and of how it was learnt.
    """
    e, model = learning.best.estimate, learning.model
    c = e.components
    mean = e.weights @ e.coefficients[:c]
    off = e.coefficients[:c] - mean
    covariance = e.omega + np.einsum("c,cp,cq->pq", e.weights, off, off)
    at = occasion_columns(model)
    if learning.best.structure.occasion.any():
        covariance[np.ix_(at, at)] += e.occasion
    out = priors.Prior("", mean, covariance, learning.columns, e.coefficients[c:] if learning.columns else None, e.shared(model))
    made = hashlib.sha256(repr((learning.kernel.hash, learning.seed, settings_text(learning.config), out.digest)).encode()).hexdigest()[:12]
    return priors.Prior(f"{priors.LEARNED}-{made}", *[getattr(out, f) for f in ("mean", "covariance", "columns", "effects", "values")])


def _errors(learning: Learning) -> dict[str, np.ndarray]:
    """Standard errors in the shapes of the estimate; NaN where fixed or not identified."""
    s, e, flat = learning.best.structure, learning.best.estimate, learning.best.errors
    free = s.regression(e.components)
    shapes = {"coefficients": free, "omega": np.tril(s.omega), "occasion": np.tril(s.occasion), "values": s.values}
    out, at = {}, 0
    for name, mask in shapes.items():
        out[name] = np.full(mask.shape, np.nan)
        out[name][mask] = flat[at : at + mask.sum()]
        at += int(mask.sum())
    return out


def unidentified(learning: Learning) -> list[str]:
    """What the data say nothing of: free entries without a standard error, and means and shared values no better known than by the model's own
    prior."""
    s, columns, model = learning.best.structure, learning.columns, learning.model
    errors, c, own = _errors(learning), learning.best.estimate.components, {q.name: q.sd for q in model.parameters}
    free, out = s.regression(c), []
    for k, j in np.argwhere(free):
        error, name = errors["coefficients"][k, j], s.fitted[j]
        if k < c and not error < own[name]:
            out.append(name if c == 1 else f"{name} of phenotype {k + 1}")
        elif k >= c and np.isnan(error):
            out.append(f"{columns[k - c].name} on {name}")
    names = [s.fitted[j] for j in occasion_columns(model)]
    for what, mask, known in (("omega", s.omega, s.fitted), ("occasion", s.occasion, names)):
        label = "between patients" if what == "omega" else "between episodes"
        out += [f"{'variance' if i == j else 'covariance'} {label} of {known[i]}" + ("" if i == j else f" and {known[j]}")
                for i, j in np.argwhere(np.tril(mask)) if np.isnan(errors[what][i, j])]
    return out + [n for n, is_free, e in zip(s.shared, s.values, errors["values"]) if is_free and not e < own[n]]


def _known(x) -> float | None:
    return float(x) if np.isfinite(x) else None


def parameter_rows(learning: Learning, version: priors.Prior) -> list[dict]:
    """Rows of `populations`."""
    best, s, errors, model = learning.best, learning.best.structure, _errors(learning), learning.model
    e, used = best.estimate, max(float(best.sums["patients"] - best.sums["left_out"]), 1.0)
    eta = best.sums["eta"] / used
    eta_sd = np.sqrt(np.maximum(best.sums["eta2"] / used - eta**2, 0.0))
    occasions = list(occasion_columns(model))
    out = priors.rows(model, version)
    for row in out:
        row["source"] = f"learned from {int(used)} patients"
        if row["parameter"] in s.fitted:
            j = s.fitted.index(row["parameter"])
            variance = e.omega[j, j]
            row |= {
                "mean_se": _known(errors["coefficients"][0, j]) if e.components == 1 else None,
                "patient_variance": float(variance), "patient_variance_se": _known(errors["omega"][j, j]), "fixed": not bool(s.means[j]),
                "occasion_variance": float(e.occasion[occasions.index(j), occasions.index(j)]) if j in occasions and s.occasion.any() else None,
                "shrinkage": _known(1.0 - eta_sd[j] / np.sqrt(variance)), "eta_mean": _known(eta[j]), "eta_sd": _known(eta_sd[j]),
            }
        else:
            k = s.shared.index(row["parameter"])
            row |= {"mean_se": _known(errors["values"][k]), "fixed": not bool(s.values[k])}
        if row["fixed"]:
            row["source"] = next(q.source for q in model.parameters if q.name == row["parameter"])
    return out


def effect_rows(learning: Learning, version: str) -> list[dict]:
    """Rows of `population_effects`."""
    e, s, errors = learning.best.estimate, learning.best.structure, _errors(learning)
    out = []
    for k, column in enumerate(learning.columns):
        row, error = e.coefficients[e.components + k], errors["coefficients"][e.components + k]
        for j in np.flatnonzero(s.effects[k] | (row != 0)):
            out.append({
                "model": learning.model.name, "prior_version": version, "parameter": s.fitted[j], "covariate": column.covariate, "kind": column.kind,
                "reference": column.reference, "level": column.level, "share": column.share, "term": k, "coefficient": float(row[j]),
                "coefficient_se": _known(error[j]), "fixed": not bool(s.effects[k, j]), "patients_missing": learning.missing[column.covariate],
            })
    return out


def fit_row(learning: Learning, version: str, at: datetime) -> dict:
    """The row of `population_fits`."""
    best = learning.best
    known = _known if best.sums["patients"] > best.sums["left_out"] else lambda _: None
    return {
        "model": learning.model.name, "prior_version": version, "status": best.status, "reason": best.reason, "learnt_at": at,
        "patients": int(best.sums["patients"]), "patients_left_out": int(best.sums["left_out"]), "patients_known": learning.known,
        "readings": int(np.nan_to_num(best.sums["readings"])), "iterations": len(best.trace) + 1, "minus_two_log_likelihood": known(-2 * best.log_likelihood),
        "minus_two_log_likelihood_se": known(2 * best.log_likelihood_se), "parameters": best.parameters, "aic": known(best.aic), "bic": known(best.bic),
        "unidentified": unidentified(learning),
        "phenotypes": best.estimate.components, "bic_by_phenotypes": [float(b) for b in learning.bics if np.isfinite(b)],
        "settings": settings_text(learning.config), "model_hash": learning.kernel.hash,
    }


def natural(model: Model, estimate: Estimate) -> dict[str, float]:
    """Medians (of the first component), SDs between patients, shared values and effects by name: what a trace shows."""
    out = {f"median_{q.name}": float(q.natural(estimate.coefficients[0, j])) for j, q in enumerate(model.fitted)}
    out |= {f"sd_{q.name}": float(np.sqrt(estimate.omega[j, j])) for j, q in enumerate(model.fitted)}
    out |= {q.name: float(q.natural(v)) for q, v in zip(population_level(model), estimate.values)}
    effects = estimate.coefficients[estimate.components :]
    return out | {f"effect_{k}_{model.fitted[j].name}": float(effects[k, j]) for k, j in np.argwhere(effects)}


def trace_rows(learning: Learning, version: str) -> list[dict]:
    """Rows of `population_trace`."""
    return [
        {
            "model": learning.model.name, "prior_version": version, "phenotypes": components, "iteration": i.number, "patients": i.patients,
            "minus_two_log_likelihood": -2 * i.log_likelihood, "change": i.change, "parameters": natural(learning.model, i.estimate),
        }
        for components, trace in learning.traces.items() for i in trace
    ]


def phenotype_rows(learning: Learning, version: priors.Prior) -> list[dict]:
    """Rows of `phenotypes`; none where there is one component."""
    e, model = learning.best.estimate, learning.model
    if e.components == 1:
        return []
    return [
        {
            "model": model.name, "prior_version": version.version, "component": c + 1, "weight": float(e.weights[c]), "parameter": q.name, "unit": q.unit,
            "median": float(q.natural(e.coefficients[c, j])), "distance": float((e.coefficients[c, j] - version.mean[j]) / np.sqrt(e.omega[j, j])),
        }
        for c in range(e.components) for j, q in enumerate(model.fitted)
    ]

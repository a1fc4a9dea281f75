"""A checked configuration: what a run means to do, known before Spark starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from twinlib import models, sources
from twinlib.config import RunConfig, load
from twinlib.engine.kernel import Kernel
from twinlib.errors import ConfigError
from twinlib.fusion import quality
from twinlib.fusion.layout import Layout, layout
from twinlib.fusion.vocabulary import load_vocabulary
from twinlib.population import fit as fitting
from twinlib.population import priors, rivals, settings
from twinlib.population.patients import with_values
from twinlib.whatif import cohorts, outcomes, recommend
from twinlib.whatif import simulate as simulation
from twinlib.whatif.scenarios import load_scenarios


@dataclass(frozen=True)
class Plan:
    """A checked configuration: everything that can be known to be wrong before Spark starts has been looked at."""

    config: RunConfig
    layout: Layout
    fitter: fitting.Fitter
    simulator: simulation.Simulator | None
    policies: tuple[recommend.Policies, ...]
    attributes: cohorts.Attributes

    @classmethod
    def of(cls, path: str | Path, as_of: datetime | None = None, landing: bool = False) -> Plan:
        """Read and check configuration, model, prior, scenarios, cohorts, key and (unless they are yet to be made, or to land) raw files.

        Raises ConfigError or DataError.
        """
        config = load(path, as_of)
        model = models.find(config.fit.model)
        packed = layout(model, load_vocabulary(config.vocabulary), config.episodes, settings.covariates(config.learn))
        quality.check(config.episodes.leave_out)
        settings.check(config.learn, model)
        rivals.find(config.learn, model)
        priors.check_version(config.fit.prior_version)
        fitter = fitting.Fitter(Kernel(model), priors.published(model), config.fit, config.seed)
        simulator = _simulator(config, fitter.kernel)
        names, found = ([s.name for s in simulator.scenarios], simulator.outcomes) if simulator else ([], ())
        if config.recommend and simulator is None:
            raise ConfigError("recommend: needs simulate")
        policies = tuple(recommend.Policies.of(r, names, found) for r in config.recommend)
        described = (tuple(q.name for q in model.fitted), model.covariates, *([tuple(o.name for o in found)] if simulator else []))
        known = cohorts.Attributes(*described)
        cohorts.check_all(config.cohorts, known)
        cohorts.check_subgroups(config.subgroups, known)
        sources.load_key(config.pseudonym_key)
        plan = cls(config, packed, fitter, simulator, policies, known)
        if config.generate is None and not landing:
            plan.check_sources()
        return plan

    def under(self, prior: priors.Prior) -> Plan:
        """The plan with fits and what-ifs under this prior and its values of what all patients share."""
        fitter = replace(self.fitter, kernel=with_values(self.fitter.kernel, prior.values), prior=prior)
        return replace(self, fitter=fitter, simulator=self.simulator and replace(self.simulator, kernel=fitter.kernel))

    def check_sources(self) -> None:
        """Check the raw files against their mappings. Raises ConfigError or DataError."""
        sources.check(self.config)


def _simulator(config: RunConfig, kernel: Kernel) -> simulation.Simulator | None:
    if config.simulate is None:
        return None
    c, model = config.simulate, kernel.model
    scenarios = load_scenarios(c.scenarios, model.agents, [q.name for q in model.parameters])
    found = outcomes.find(c.outcomes, model)
    return simulation.Simulator(kernel, scenarios, c.minimum_wear_fraction, found, c.mode, c.horizon, c.grid, config.seed)

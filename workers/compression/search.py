"""The search over recipes: what suits the graph first, then mixed precision, then what Optuna proposes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import optuna

from workers.compression.candidate import Candidate, Notebook, is_trained
from workers.compression.confirming import Confirming
from workers.compression.measuring import Measuring, why_not
from workers.compression.mixed import Mixing, evaluations
from workers.compression.pruning import can_prune
from workers.compression.recipes import EXPORTED, Recipe, Step, key_of
from workers.compression.space import LEARNT, Picked, Space
from workers.compression.teaching import NoTime, can_rebuild
from workers.context import JobContext, Stopped
from workers.evaluation.steps import in_words

_REPEATS = 30  # proposals in a row that were proposed before end the search
_NEARLY = 2.0  # times the allowed loss, from where learning to be rounded may lead into the budget


@dataclass(slots=True)
class Search:
    """Measures candidates until the time is up, or nothing new is proposed.

    Which recipes are proposed follows from the seed and from what was measured; a recipe always makes the same file.
    """

    measuring: Measuring
    space: Space
    notebook: Notebook
    limit_s: float
    usual: Recipe = ()
    given: Sequence[Recipe] = ()  # alone are tried, if there are any
    job: JobContext | None = None
    span: tuple[float, float] = (0.3, 0.98)  # of the job's progress
    confirming: Confirming = field(init=False)
    _training: bool = True  # networks and trees may be taught
    _mixed: str = ""  # of which mixed precision was looked for
    _proposed: set[str] = field(default_factory=set)  # by this attempt

    def __post_init__(self) -> None:
        self.confirming = Confirming(self.measuring, self.notebook, self.limit_s, self.job)

    def run(self) -> list[Candidate]:
        """Everything that was measured, by this attempt or an earlier one. Stopped when the job is asked to stop."""
        if not self.notebook.searched:
            self._all_given() if self.given else self._search()
            self.notebook.close(self.confirming.spent_s)
        return self.notebook.all()

    def _all_given(self) -> None:
        for recipe in self.given:
            if self._over() and self.notebook.find(recipe) is None:
                failed = Candidate(list(recipe), failed="there was no time left for it; raise time_limit_s")
                self.notebook.add(failed, self.confirming.spent_s)
            else:
                self._try(recipe)

    def _search(self) -> None:
        study, first = self._study(), list(self.space.first)
        if self.usual:
            self._try(self.usual)
        if self.measuring.budget.has_target:
            first = self._without_training(study)
        if self._training:
            for alone in self.space.alone:
                if not self._over():
                    self._try(alone)
            self._all(study, first, rounding=True)
        self._mix()
        self._learn_rounding()
        repeats = 0
        while not self._over() and repeats < _REPEATS:
            repeats = 0 if self._next(study) else repeats + 1

    def _without_training(self, study: optuna.Study) -> list[Picked]:
        """With a target what needs no training comes first, and if it holds the budget nothing is trained.

        Without one the objective is to get the most, which takes both. What is left to try is returned.
        """
        trained = [is_trained(self.space.recipe(picked) or ()) for picked in self.space.first]
        picks = list(zip(self.space.first, trained, strict=True))
        self._all(study, [picked for picked, late in picks if not late], rounding=False)
        holds = self.confirming.one_holds(lambda one: not one.trained)
        best = self._too_lossy()
        if not holds and best is not None and len(best.stops) == 1:  # its loss alone
            self._mix()
            holds = self.confirming.one_holds(lambda one: not one.trained)
        self._training = not holds
        if holds:
            self._log("what needs no training holds the budget: nothing is trained")
        return [picked for picked, late in picks if late]

    def _all(self, study: optuna.Study, picks: Sequence[Picked], *, rounding: bool) -> None:
        """Measure these; with `rounding`, one that is nearly within the budget is taught at once."""
        for picked in picks:
            study.enqueue_trial(dict(picked))
        for _ in picks:
            if self._over():
                return
            self._next(study)
            if rounding:
                self._learn_rounding(_NEARLY)  # which takes less time than another network

    def _next(self, study: optuna.Study) -> bool:
        """Measure what is proposed next; False if it was proposed before, or is no recipe."""
        trial = study.ask()
        choices = {name: of for name, of in self.space.choices.items() if self._training or name not in LEARNT}
        picked = {name: str(trial.suggest_categorical(name, options)) for name, options in choices.items()}
        recipe = self.space.recipe(picked)
        new = recipe is not None and key_of(recipe) not in self._proposed
        found = None if recipe is None or self.measuring.maker.hopeless(recipe) else self._try(recipe)
        if recipe is not None:  # an earlier attempt may have measured it: that repeats nothing
            self._proposed.add(key_of(recipe))
        if found is None or found.failed is not None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return new
        trial.set_constraint("budget", found.excess)
        study.tell(trial, (found.speed_up, found.quicker, found.smaller))
        return new

    def _try(self, recipe: Recipe) -> Candidate:
        """What is measured, or was before."""
        if (known := self.notebook.find(recipe)) is not None:
            return known
        if self.job is not None and self.job.should_stop():
            raise Stopped
        found = self._made(recipe)
        self.notebook.add(found, self.confirming.spent_s)
        self._tell(found)
        return found

    def _made(self, recipe: Recipe) -> Candidate:
        """Measured, unless it has ended the process of earlier attempts."""
        if not self.notebook.begin(recipe, self.confirming.spent_s):
            return Candidate(list(recipe), failed="the job's process ended twice while it was made")
        self._keep()
        self.measuring.maker.deadline = time.monotonic() + self.confirming.search_ends_in_s
        try:
            return self.measuring.try_out(recipe)
        except Stopped:
            self.notebook.leave(self.confirming.spent_s)
            self._keep()
            raise
        finally:
            self.measuring.maker.forget()

    def _keep(self) -> None:
        """What the notebook has is worth the job's keeping."""
        if self.job is not None and self.notebook.path is not None:
            self.job.checkpointed()

    def _tell(self, found: Candidate) -> None:
        if self.job is None:
            return
        self._keep()
        share = len(self.notebook) / len(self.given) if self.given else self.notebook.spent_s / self.limit_s
        begin, end = self.span
        step, left = f"measured {len(self.notebook)} recipes", None if self.given else self.limit_s * max(0, 1 - share)
        self.job.progress(begin + (end - begin) * min(1.0, share), step, left)
        numbers = f"{found.smaller:.2f} times smaller, {found.speed_up:.2f} times the rows a second"
        self.job.log(f"tried {in_words(found.recipe)}: " + (found.failed or "; ".join([numbers, *found.stops])))

    def _over(self) -> bool:
        return self.confirming.search_ends_in_s <= 0

    def _too_lossy(self) -> Candidate | None:
        """The fastest int8 graph whose answers are beyond the budget, unless one within it is as fast."""
        tried = [one for one in self.notebook.all() if _static(one) is not None and one.failed is None]
        fits = [one.speed_up for one in tried if one.loss["at_most"] <= one.loss["allowed"]]
        short = [
            one for one in tried if one.loss["at_most"] > one.loss["allowed"] and one.speed_up > max(fits, default=0.0)
        ]
        return max(short, key=lambda one: one.speed_up, default=None)

    def _mix(self) -> None:
        """Of the fastest int8 graph whose answers are beyond the budget: which layers have to stay float?"""
        best = self._too_lossy()
        if best is None or key_of(best.recipe) == self._mixed or self._over():
            return
        self._mixed = key_of(best.recipe)
        mixing, known = Mixing(self.measuring, best.recipe), self.notebook.changes_of(best.recipe)
        layers = len(mixing.layers)
        self._log(f"mixed precision: {evaluations(layers, len(known))} graphs will be looked at, of {layers} layers")
        try:
            recipe = mixing.fewest_float(known, self._between)
        except (Stopped, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - of the quantizer, or the time is up
            self._log(f"mixed precision was not found: {why_not(error)}")
            return
        if recipe is not None:
            self._try(recipe)

    def _between(self) -> None:
        """Keep what is known of layers. Stopped, NoTime: it is over."""
        self.notebook.save(self.confirming.spent_s)
        if self.job is not None and self.job.should_stop():
            self.job.checkpointed()
            raise Stopped
        if self._over():
            raise NoTime("the time to search is up")

    def _log(self, message: str) -> None:
        if self.job is not None:
            self.job.log(message)

    def _learn_rounding(self, most: float = float("inf")) -> None:
        """The int8 graph whose answers are least beyond the budget, of those that can be taught to round, is taught.

        Args:
            most: times the allowed loss that it may be at.
        """
        material = self.measuring.maker.material
        if not self._training or not can_rebuild(material) or self._over():
            return
        # A student of an encoder has words of its own, which are not in its graph's weights.
        exported = EXPORTED if can_prune(material) else EXPORTED - {"student"}
        tried = [one for one in self.notebook.all() if _teachable(one, exported)]
        made = [one for one in self.notebook.all() if one.failed is None]
        fits = max((one.speed_up for one in made if _share(one) <= 1), default=0.0)
        short = [one for one in tried if 1 < _share(one) <= most and one.speed_up > fits]
        for one in sorted(short, key=_share):
            step = {"step": "learn_rounding", "operators": one.recipe[-1]["operators"]}
            before, after = ([s for s in one.recipe if (s["step"] in exported) is side] for side in (True, False))
            recipe = [*before, step, *after]
            if self.measuring.maker.hopeless(recipe):
                continue
            found = self._try(recipe)
            if found.failed is None or self._over():
                return

    def _study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(
            seed=self.measuring.maker.material.seed, n_startup_trials=len(self.space.first) + 2,
        )  # fmt: skip
        return optuna.create_study(directions=["maximize"] * 3, sampler=sampler)


def _share(one: Candidate) -> float:
    """Of the allowed loss, that it may be at."""
    share: float = one.loss["at_most"] / one.loss["allowed"] if one.loss["allowed"] else float("inf")
    return share


def _teachable(one: Candidate, exported: frozenset[str]) -> bool:
    """It is int8 of a network that one of these steps has exported, or none, with fused nodes at most."""
    before, step = one.recipe[:-1], one.recipe[-1]
    plain = all(earlier["step"] in exported | {"fuse"} for earlier in before)
    return one.failed is None and step.get("method") == "static" and "keep_float" not in step and plain


def _static(one: Candidate) -> Step | None:
    """The last step, if it makes int8 of a network whose numbers are otherwise as they were."""
    step = one.recipe[-1]
    plain = step.get("method") == "static" and "keep_float" not in step
    return step if plain and all(earlier["step"] == "fuse" for earlier in one.recipe[:-1]) else None

"""Weights & Biases as a dashboard of runs. The package imports wandb in this folder alone.

A run of bdbnet is one run there, in whatever processes and however often it is resumed: its id lies in the run folder. What a run
shows is listed in docs/wandb.md.
"""

import os
import secrets
import shutil
import string
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment  # type: ignore[attr-defined]
from pytorch_lightning.utilities import rank_zero_only

from bdbnet.config import ConfigError, shown_path
from bdbnet.evaluation.run_log import Outcome, Picture, RunFacts, beside_rows, summary
from bdbnet.files import write_atomically
from bdbnet.reporting.run_pictures import Shown, as_image, as_images, pictures_of, worst_queries
from bdbnet.results import ANALYSIS, HISTORY, LAST, RESULT

#: File in a run folder with the id of its run in W&B.
RUN_ID = ".wandb_id"
#: Folder in a run folder with the network as `Embedder.save` writes it.
MODEL = Path("wandb", "model")

_OFFLINE = "logger.logger.offline=true logs into the run folder instead, for `wandb sync`"
_LONGEST_NAME = 128
_ID_LETTERS = string.ascii_lowercase + string.digits


class WandbDashboard(WandbLogger):
    """Lightning's W&B logger that knows what a run of bdbnet is; for the arguments see `bdbnet.reporting.wandb_logger`.

    It begins with `begin`, or with the first number. From then on an error of W&B is told once and the run continues without it.
    """

    def __init__(
        self,
        *,
        save_dir: str,
        project: str | None,
        entity: str | None,
        name: str | None,
        group: str | None,
        job_type: str | None,
        notes: str | None,
        tags: Sequence[str],
        offline: bool | None,
        shown: Shown,
        model: bool,
        result: bool,
    ) -> None:
        _wandb()  # said before anything is read or trained
        super().__init__(save_dir=save_dir, project=project, name=name)
        self._asked = {
            "project": project, "entity": entity, "name": name, "group": group, "job_type": job_type, "notes": notes,
        }  # fmt: skip
        self._tags, self._mode = [*tags], _mode(offline)
        self._shown, self._model, self._result = shown, model, result
        self._facts: RunFacts | None = None
        self._broken = False
        self._epoch, self._images_seen = 0, 0

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of W&B."""
        if self._experiment is None:
            self._experiment = self._start()
        return self._experiment

    @rank_zero_only
    def begin(self, facts: RunFacts) -> None:
        """Start the run, or the next part of one that is resumed.

        Raises:
            ConfigError: without a key, for a project that can't be written, where W&B doesn't answer or fails.
        """
        self._facts = facts
        run = self.experiment
        settings = {**facts.settings(), **facts.flat(), "command": facts.command}
        if (trained := _run_of_checkpoint(facts)) is not None:
            settings["trained_in"] = trained
            self._guarded(lambda: _use_model(run, trained))
        # What a sweep of W&B has set is the same and stays.
        self._guarded(lambda: run.config.update(settings, allow_val_change=True))
        if not run.offline and not run.disabled:
            print(f"W&B: {run.url}")

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Add settings to the configuration of the run."""
        self._guarded(lambda: super(WandbDashboard, self).log_hyperparams(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log what other callbacks measure; the rest comes with the rows."""
        own, log = beside_rows(metrics), super().log_metrics
        if own:
            self._guarded(lambda: log(own, step))

    @rank_zero_only
    def log_row(self, row: Mapping[str, float]) -> None:
        """Log an epoch. W&B's own step is that of the images seen, so that a resumed run continues where it was."""
        run, images = self.experiment, int(row["images_seen"])
        again = images == self._images_seen and images > 0
        self._epoch, self._images_seen = int(row["epoch"]), images
        self._guarded(lambda: run.log(dict(row), step=None if again else images))

    @rank_zero_only
    def log_pictures(self, name: str, pictures: Sequence[Picture], *, of_images: bool) -> None:
        """Show pictures, made smaller where W&B would refuse them; see `Dashboard.log_pictures`."""
        if of_images and not self._shows_images():
            return
        import wandb

        def log() -> None:
            shown = [wandb.Image(image, caption=caption or None) for image, caption in as_images(name, pictures)]
            self._log({name: shown})

        self._guarded(log)

    @rank_zero_only
    def log_outcome(self, outcome: Outcome) -> None:
        """Make the summary hold what ``result.json`` holds, and log pictures, the table of worst queries and artifacts."""
        run = self.experiment
        self._guarded(lambda: run.summary.update(summary(outcome.result)))
        images = self._shows_images()
        if not images and (self._shown.ranking_lists or self._shown.worst_queries):
            told = "logger.images=true sends them" if self._shown.images is None else "logger.images=false"
            print(f"W&B: pictures of the images of {outcome.result.data.get('name')} are left out ({told})")
        with _staged(_data(run)):

            def log_pictures() -> None:
                for found in pictures_of(outcome, self._shown, images=images):
                    self.log_pictures(found.name, found.pictures, of_images=found.of_images)

            self._guarded(log_pictures)
            self._guarded(lambda: self._log_worst(outcome, images))
            if self._model and outcome.result.kind == "train":
                self._guarded(lambda: _log_model(run, outcome))
            if self._result:
                self._guarded(lambda: _log_result(run, outcome))

    @rank_zero_only
    def close(self, status: int) -> None:
        """End the run with an exit status, and say where it is to be seen."""
        run, self._experiment = self._experiment, None
        if run is None:
            return
        self._guarded(lambda: run.finish(exit_code=status))
        if run.disabled:
            return
        if not run.offline:
            shutil.rmtree(_data(run), ignore_errors=True)
        where = f"wandb sync {shown_path(run.settings.sync_dir)}" if run.offline else run.url
        print(f"W&B: {f'offline; send it with: {where}' if run.offline else where}")

    def finalize(self, status: str) -> None:
        """Nothing: Lightning calls it after every loop, `close` ends the run."""

    def _shows_images(self) -> bool:
        return self._shown.images_of(self._facts is not None and self._facts.synthetic)

    def _log(self, values: dict[str, Any]) -> None:
        self.experiment.log({**values, "epoch": self._epoch, "images_seen": self._images_seen})

    def _log_worst(self, outcome: Outcome, images: bool) -> None:
        import wandb

        found = worst_queries(outcome, self._shown, images=images)
        if found is None:
            return
        table = wandb.Table(columns=list(found.columns))
        for row in found.rows:
            shown = [None if cell is None else wandb.Image(as_image(Picture(cell))) for cell in row[:2]]
            table.add_data(*shown, *row[2:])
        self._log({"test/worst_queries": table})

    def _guarded(self, log: Callable[[], Any]) -> None:
        """Log something; an error of W&B must not cost a training, so that the run continues without it."""
        if self._broken:
            return
        try:
            log()
        except Exception as error:
            self._broken = not isinstance(error, ValueError | TypeError)  # which is about one thing that was logged
            rest = "the run continues without it" if self._broken else "this is left out"
            warnings.warn(f"W&B: {type(error).__name__}: {error}; {rest}", stacklevel=3)

    def _start(self) -> Any:
        wandb = _wandb()
        if wandb.run is not None:
            wandb.finish()  # of somebody's earlier run in this process, which would swallow this one
        folder = Path(str(self.save_dir))
        if self._mode != "disabled":
            folder.mkdir(parents=True, exist_ok=True)
        try:
            wandb.setup(settings=self._quiet(wandb))  # of what it says before a run begins
            run = wandb.init(**self._arguments(wandb))
        except Exception as error:
            raise ConfigError(_why(error, self._project_shown())) from error
        if run.disabled:
            return run
        write_atomically(folder / RUN_ID, f"{'/'.join(filter(None, (run.entity, run.project, run.id)))}\n".encode())
        run.define_metric("epoch", hidden=True)
        run.define_metric("images_seen", hidden=True)
        for part in ("train", "test"):
            run.define_metric(f"{part}/*", step_metric="epoch")
        return run

    def _arguments(self, wandb: Any) -> dict[str, Any]:
        facts = self._facts
        own = {} if facts is None else {"name": facts.name, "group": facts.group, "job_type": facts.command}
        variables = {"group": "WANDB_RUN_GROUP"}
        found: dict[str, Any] = {}
        for key, asked in self._asked.items():
            if asked is not None:
                found[key] = asked
            elif not os.environ.get(variables.get(key, f"WANDB_{key.upper()}")):  # else W&B reads it itself
                found[key] = {"project": "bdbnet", **own}.get(key)
        if found.get("name"):
            found["name"] = str(found["name"])[:_LONGEST_NAME]
        tags = [*self._tags, *(() if facts is None else facts.tags), *os.environ.get("WANDB_TAGS", "").split(",")]
        return {
            **found,
            "tags": [*dict.fromkeys(tag.strip()[:64] for tag in map(str, tags) if tag.strip())],
            "id": os.environ.get("WANDB_RUN_ID") or self._earlier_id(),
            "resume": os.environ.get("WANDB_RESUME") or "allow",
            "dir": None if os.environ.get("WANDB_DIR") else self.save_dir,
            "mode": self._mode,
            "settings": self._quiet(wandb),
        }

    def _quiet(self, wandb: Any) -> Any:
        """Settings that leave the terminal to bdbnet, unless the user's variables say otherwise."""
        own = {"console": "off", "silent": True}
        return wandb.Settings(**{key: own[key] for key in own if not os.environ.get(f"WANDB_{key.upper()}")})

    def _earlier_id(self) -> str:
        """The id that the run folder has; a new one for a folder without, and where its run is replaced."""
        file = Path(str(self.save_dir)) / RUN_ID
        if file.is_file() and (self._facts is None or not self._facts.anew):
            found = file.read_text().strip().rpartition("/")[2]
            if found:
                return found
        return "".join(secrets.choice(_ID_LETTERS) for _ in range(8))

    def _project_shown(self) -> str:
        entity = self._asked["entity"] or os.environ.get("WANDB_ENTITY")
        project = self._asked["project"] or os.environ.get("WANDB_PROJECT") or "bdbnet"
        return f"{entity}/{project}" if entity else str(project)


def _wandb() -> Any:
    """The library.  Raises ConfigError where it can't be used."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        missing = error.name or "wandb"
        raise ConfigError(
            f"logger=wandb needs {missing}, which is not installed: pip install {missing}, or leave logger=wandb out"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"logger=wandb: the installed wandb can't be imported ({type(error).__name__}: {error}). Install it again "
            "(pip install --force-reinstall wandb), or leave logger=wandb out"
        ) from error
    if not hasattr(wandb, "init"):  # a folder of this name, such as the one with W&B's own files
        place = next(iter(getattr(wandb, "__path__", ["wandb"])))
        raise ConfigError(
            f"logger=wandb: the folder {place} is imported in place of the package wandb: pip install wandb, or start in another "
            "folder"
        )
    return wandb


def _mode(offline: bool | None) -> str:
    """W&B's mode: what is typed counts, but WANDB_MODE can always keep a run from being sent."""
    variable = os.environ.get("WANDB_MODE", "").lower()
    if offline is True and variable != "disabled":
        return "offline"
    if variable in ("offline", "dryrun", "disabled"):
        return "offline" if variable == "dryrun" else variable
    by_agent = offline is None and bool(os.environ.get("WANDB_SWEEP_ID"))  # which looks at what its runs send
    return "online" if offline is False or variable in ("online", "run", "shared") or by_agent else "offline"


def _why(error: Exception, project: str) -> str:
    """Why W&B could not start, and what to do."""
    text = " ".join(str(error).split()) or type(error).__name__
    said = text.lower()
    if "api key" in said or "api_key" in said or "log in" in said or "login" in said:
        return (
            f"logger=wandb: no key of W&B that it takes ({text}). Run `wandb login`, or set WANDB_API_KEY; {_OFFLINE}"
        )
    if any(word in said for word in ("permission", "403", "404", "401", "not found", "entity", "project")):
        return (
            f"logger=wandb: the project {project} can't be written ({text}). Choose another with logger.logger.project= and "
            f"logger.logger.entity=, or ask its owner; {_OFFLINE}"
        )
    if type(error).__module__.startswith("wandb") or isinstance(error, OSError):
        return f"logger=wandb: W&B can't be reached or doesn't start ({text}). Check the network and WANDB_BASE_URL; {_OFFLINE}"
    return f"logger=wandb: W&B fails ({type(error).__name__}: {text}). Update it (pip install -U wandb), or leave logger=wandb out"


def _run_of_checkpoint(facts: RunFacts) -> str | None:
    """The run of W&B that trained the evaluated checkpoint, ``entity/project/id``, where its folder says so."""
    checkpoint = facts.config.get("checkpoint")
    if facts.command == "train" or not isinstance(checkpoint, str):
        return None
    file = Path(checkpoint).expanduser().parent / RUN_ID
    return file.read_text().strip() or None if file.is_file() else None


def _use_model(run: Any, trained: str) -> None:
    """Link an evaluation to the model that it evaluates: online, where the model was logged."""
    if run.offline or run.disabled:
        return
    project, _, name = trained.rpartition("/")
    try:
        run.use_artifact(f"{project}/model-{name}:latest" if project else f"model-{name}:latest")
    except Exception as error:  # trained offline and not sent yet, or without its model
        print(f"W&B: not linked to the model of run {name} ({type(error).__name__}: {error})", file=sys.stderr)


def _log_model(run: Any, outcome: Outcome) -> None:
    from bdbnet.evaluation.load import load

    folder = load(outcome.folder / LAST, device="cpu").save(outcome.folder / MODEL)
    metadata = {**summary(outcome.result), "protocol": outcome.result.protocol.record()}
    _log_files(run, f"model-{run.id}", "model", sorted(folder.iterdir()), metadata)


def _log_result(run: Any, outcome: Outcome) -> None:
    files = [outcome.folder / name for name in (RESULT, HISTORY, ANALYSIS)]
    _log_files(run, f"result-{run.id}", "result", [file for file in files if file.is_file()], summary(outcome.result))


def _log_files(run: Any, name: str, kind: str, files: Sequence[Path], metadata: dict[str, Any]) -> None:
    import wandb

    artifact = wandb.Artifact(name, kind, metadata=metadata)
    for file in files:
        artifact.add_file(str(file), policy="immutable", skip_cache=True)  # not copied first
    run.log_artifact(artifact)


def _data(run: Any) -> Path:
    """Where the files of tables lie until they are sent."""
    return Path(run.settings.wandb_dir).absolute() / f"data-{run.id}"


@contextmanager
def _staged(folder: Path) -> Iterator[None]:
    """Keep the files of tables in the run folder until they are sent, unless the user has a place for W&B's data."""
    if os.environ.get("WANDB_DATA_DIR"):
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]

"""``python -m bdbnet.report``: the page of a run or a sweep, or the comparison of two runs."""

from pathlib import Path

from omegaconf import DictConfig

from bdbnet.config import ConfigError, command


@command("report")
def main(config: DictConfig) -> None:
    if not config.run:
        raise ConfigError("run= is missing: give the folder of a run, such as run=outputs/train/default")
    overwrite = bool(config.get("overwrite"))
    from bdbnet.reporting import read_run, write_report
    from bdbnet.reporting.compare_runs import compare_runs
    from bdbnet.reporting.pdf import write_pdf
    from bdbnet.reporting.sweep import is_sweep
    from bdbnet.reporting.sweep_page import write_sweep_report
    from bdbnet.reporting.terminal import metrics_table

    if config.get("compare"):
        text, record = compare_runs(config.run, config.compare, seed=config.seed, overwrite=overwrite)
        print(f"{text}\n\ncomparison: {record}")
        return
    if (file := Path(config.run).expanduser()).suffix == ".html" and file.is_file():
        if not config.get("pdf"):
            raise ConfigError(f"run={config.run}: a page already; add pdf=true to print it into a PDF")
        print(f"pdf: {write_pdf(file)}")
        return
    if is_sweep(config.run):
        table, (page, *others) = write_sweep_report(config.run)
        print(table)
        print(f"report: {page}\ntable:  {', '.join(str(path) for path in others)}")
    else:
        page = write_report(
            config.run, queries=config.queries, top=config.top, seed=config.seed, maps=bool(config.get("maps")),
            checkpoint=config.get("checkpoint"), overwrite=overwrite,
        )  # fmt: skip
        print(metrics_table(read_run(page.parent).result))
        print(f"report: {page}")
    if config.get("pdf"):
        print(f"pdf:    {write_pdf(page)}")


if __name__ == "__main__":
    main()

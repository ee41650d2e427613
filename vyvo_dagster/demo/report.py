"""What the demo shows: progress while it works, tables and a contact sheet at the end."""

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from vyvo_dagster.demo.jobs import DIGITS, Outcome

__all__ = ["Bars", "Phases", "contact_sheet", "jobs_table"]


class Phases:
    """Times each phase and prints it as it ends."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.times: list[tuple[str, float]] = []

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """One phase; its time is kept only when it succeeds."""
        self.console.print(f"[bold]{name}[/bold] ...", highlight=False)
        began = time.monotonic()
        yield
        self.add(name, time.monotonic() - began)

    def add(self, name: str, seconds: float) -> None:
        """A phase that was timed elsewhere."""
        self.times.append((name, seconds))
        self.console.print(f"[bold]{name}[/bold] done in {seconds:.1f} s", highlight=False)

    def table(self) -> Table:
        """All phases and their sum."""
        table = Table("phase", "seconds", title="phases")
        for name, seconds in self.times:
            table.add_row(name, f"{seconds:.1f}")
        table.add_section()
        table.add_row("all", f"{sum(s for _, s in self.times):.1f}")
        return table


class Bars:
    """A bar for each job on a terminal; a line for each change of note elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = sys.stdout.isatty()
        self._notes: dict[int, str] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks: list[TaskID] = []

    def __enter__(self) -> Self:
        if self._live:
            self._tasks = [
                self._progress.add_task(f"job {i:>2}  digit {d}", total=1.0, note="")
                for i, d in enumerate(DIGITS)
            ]
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._progress.stop()

    def update(self, index: int, fraction: float, note: str) -> None:
        """Show a job's progress; called from several threads."""
        if self._live:
            self._progress.update(self._tasks[index], completed=fraction, note=note)
        elif self._notes.get(index) != note:
            self._notes[index] = note
            self._console.print(f"job {index:>2}  digit {DIGITS[index]}  {note}", highlight=False)


def jobs_table(outcomes: Sequence[Outcome]) -> Table:
    """One row for each job; seconds since its submission."""
    table = Table(
        "job",
        "digit",
        "status",
        "node",
        "waited s",
        "ran s",
        "total s",
        "events",
        "file",
        title="jobs",
    )
    for o in outcomes:
        table.add_row(
            o.job_id,
            str(o.digit),
            o.status,
            o.node,
            f"{o.started:.2f}",
            f"{o.total - o.started:.2f}",
            f"{o.total:.2f}",
            str(o.events),
            "-" if o.png is None else o.png.name,
        )
    return table


def contact_sheet(
    outcomes: Sequence[Outcome], path: Path, columns: int = 4, gap: int = 8
) -> Path | None:
    """All pictures on one sheet; None when there are none."""
    pictures = [Image.open(o.png) for o in outcomes if o.png is not None]
    if not pictures:
        return None
    width = max(p.width for p in pictures)
    height = max(p.height for p in pictures)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("L", (columns * (width + gap) + gap, rows * (height + gap) + gap), 255)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        sheet.paste(picture, (gap + column * (width + gap), gap + row * (height + gap)))
    sheet.save(path)
    return path

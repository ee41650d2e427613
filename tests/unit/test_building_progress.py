"""BuildKit's output as log lines."""

from vyvo_dagster.building.progress import PlainProgress

OUTPUT = """\
#0 building with "default" instance using docker driver
#1 [internal] load build definition from Dockerfile
#1 transferring dockerfile: 217B done
#1 DONE 0.0s
#4 [runner 1/2] FROM docker.io/vyvo/base:bookworm
#4 CACHED
#6 [2/2] RUN echo hello
#6 0.050 hello
#6 12.5 [looks like a vertex]
#6 ERROR: process did not complete successfully
#8 exporting to image
#9 pushing 127.0.0.1:5000/t/x:1 with docker
#9 pushing layer 479308494d76 4.82MB / 190.84MB 0.2s
#9 pushing layer 479308494d76 0.3s done
Dockerfile:2
"""


def test_steps_are_named_and_progress_bars_dropped() -> None:
    progress = PlainProgress()
    lines = [shown for line in OUTPUT.splitlines() if (shown := progress(line))]
    assert ("load", "[internal] load build definition from Dockerfile") in lines
    assert ("1/2", "CACHED") in lines
    assert ("2/2", "hello") in lines
    assert ("2/2", "ERROR: process did not complete successfully") in lines
    assert ("export", "pushing layer 479308494d76 0.3s done") in lines
    assert ("image", "Dockerfile:2") in lines
    assert not any("190.84MB" in text for _, text in lines)


def test_pushing_is_noticed_when_layers_travel() -> None:
    progress = PlainProgress()
    seen = []
    for line in OUTPUT.splitlines():
        progress(line)
        seen.append(progress.pushing)
    assert seen.index(True) == 11

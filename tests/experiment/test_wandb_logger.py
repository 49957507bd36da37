"""WandbRun: where credentials are found, and what a server that refuses them or is away leads to."""

import inspect
import json
import os
import subprocess
import sys
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import wandb
import yaml

import train
from core.errors import UserError
from experiment.wandb_logger import WandbRun

KEY = "0123456789" * 4
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Login(BaseHTTPRequestHandler):
    """As much of a W&B server as a login needs; it knows one key, whose user may not begin a run."""

    def do_POST(self):
        login = b"viewer" in self.rfile.read(int(self.headers["Content-Length"]))
        key = b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode().partition(":")[2]
        self.send_response((200 if login else 403) if key == KEY else 401)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        viewer = {"id": "1", "entity": "someone", "username": "someone", "email": "", "flags": "{}", "teams": {"edges": []}}
        answer = {"data": {"viewer": viewer}} if login and key == KEY else {"errors": [{"message": "no"}]}
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def url():
    with ThreadingHTTPServer(("127.0.0.1", 0), Login) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home folder in which nobody has logged in; W&B reads its environment anew in it."""
    for name in [name for name in os.environ if name.startswith("WANDB") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    wandb.teardown()
    wandb.sdk.lib.wbauth.unauthenticate_session(update_settings=False)
    yield tmp_path
    wandb.teardown()
    wandb.sdk.lib.wbauth.unauthenticate_session(update_settings=False)


def wandb_login(*arguments):
    subprocess.run([sys.executable, "-m", "wandb", "login", *arguments], check=True, capture_output=True, timeout=120)


def from_environment(url, home, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def by_command_without_verification(url, home, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", url)
    wandb_login(KEY, "--no-verify")


def by_command_for_a_host(url, home, monkeypatch):
    wandb_login(f"--host={url}", KEY)


def from_another_netrc(url, home, monkeypatch):
    (home / "keys").write_text(f"machine {url.removeprefix('http://')} login user password {KEY}\n")
    monkeypatch.setenv("NETRC", str(home / "keys"))
    monkeypatch.setenv("WANDB_BASE_URL", url)


def from_the_settings_file(url, home, monkeypatch):
    (home / ".config/wandb").mkdir(parents=True)
    (home / ".config/wandb/settings").write_text(f"[default]\nbase_url = {url}\napi_key = {KEY}\n")


@pytest.mark.parametrize(
    "log_in",
    [from_environment, by_command_without_verification, by_command_for_a_host, from_another_netrc, from_the_settings_file],
)
def test_with_a_key_the_run_is_online(url, home, monkeypatch, capsys, log_in):
    log_in(url, home, monkeypatch)
    logger = WandbRun(str(home / "run"))
    assert "mode" not in logger._wandb_init and "W&B:" not in capsys.readouterr().out


@pytest.mark.parametrize("host", ["http://127.0.0.1:9", None])
def test_without_a_key_the_run_is_offline_and_says_so_in_one_line(home, monkeypatch, capsys, host):
    if host:
        monkeypatch.setenv("WANDB_BASE_URL", host)
    (home / ".netrc").write_text(f"machine elsewhere.example.org login user password {KEY}\n")
    logger = WandbRun(str(home / "run"))
    (line,) = capsys.readouterr().out.splitlines()
    assert "WANDB_MODE=offline" in line and (host or "https://") in line
    assert logger._wandb_init["mode"] == "offline"


def test_an_unreadable_netrc_counts_as_no_key(home):
    (home / ".netrc").write_text("machine {{{ what\n")
    assert WandbRun(str(home / "run"))._wandb_init["mode"] == "offline"


def test_a_mode_is_not_questioned(home, monkeypatch, capsys):
    assert WandbRun(str(home / "run"), mode="offline")._wandb_init["mode"] == "offline"
    for mode in ("offline", "disabled"):
        wandb.teardown()
        monkeypatch.setenv("WANDB_MODE", mode)
        assert "mode" not in WandbRun(str(home / "run"))._wandb_init
    assert capsys.readouterr().out == ""
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="wandb login"):
        WandbRun(str(home / "run"))


@pytest.mark.parametrize("mistake", ["no server", "wrong key", "malformed key", "refused run"])
def test_a_failed_start_is_one_line_and_leaves_nothing(url, home, monkeypatch, capsys, mistake):
    host = "http://127.0.0.1:9" if mistake == "no server" else url
    key = {"wrong key": KEY[::-1], "malformed key": "0123"}.get(mistake, KEY)
    for name, value in {"WANDB_BASE_URL": host, "WANDB_API_KEY": key, "WANDB_HTTP_TIMEOUT": "2"}.items():
        monkeypatch.setenv(name, value)
    run_dir = home / "runs/x"
    assert train.main(["configs/gpnn.yaml", "datamodule.class_path=datamodules.synthetic.SyntheticDataModule",
                       "datamodule.image_size=[24,32]", "module.min_size=8", f"run_dir={run_dir}",
                       "trainer.accelerator=cpu", "callbacks.metrics=null"]) == 2  # fmt: skip
    *earlier, line = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("wandb:")]
    if mistake == "refused run":  # at the beginning of the training, after Lightning's lines about devices
        assert line.startswith("error: W&B: the run could not be started: ") and "error 403" in line
        assert run_dir.parent.exists() and not run_dir.exists()
    else:
        assert line.startswith("error: logger.wandb: W&B login") and host in line and "WANDB_MODE=offline" in line
        assert not earlier and not run_dir.parent.exists()


def test_keywords_are_those_that_wandb_accepts(home):
    """Lightning hands wandb a keyword that wandb calls deprecated."""
    logger = WandbRun(str(home), name="x", id="mine", mode="offline", entity="team", tags=["a"], settings={"disable_git": True})
    arguments = logger._wandb_init
    assert set(arguments) <= set(inspect.signature(wandb.init).parameters) and "anonymous" not in arguments
    assert logger.version == "mine" and arguments["entity"] == "team" and arguments["resume"] == "allow"
    assert wandb.Settings(**arguments["settings"]).finish_timeout == 600 and arguments["settings"]["disable_git"]
    defaults = yaml.safe_load(open("configs/base.yaml"))["logger"]["wandb"]
    assert defaults["finish_timeout"] == 600

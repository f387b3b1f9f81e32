"""The package, and scripts/install, under a systemd that runs, in a bare Debian that is booted."""

import os
import re
import shutil
import subprocess
import unittest

import common
from common import inside, run

DEB = os.path.join(common.REPO, "scripts/deb")
# Runs inside, once all is up. What it finds goes to /found, a line for each.
PROBE = r"""#!/bin/sh
exec >/found 2>&1
set -x
say() { set +x; echo "FOUND $1: $2"; set -x; }
until llmproxy health --ready -c /etc/llmproxy/config.yaml; do sleep 0.1; done
say active "$(systemctl is-active llmproxy)"
main() { systemctl show llmproxy -p "$1" --value; }
say user "$(stat -c %U /proc/$(main MainPID))"
say files "$(grep 'open files' /proc/$(main MainPID)/limits)"
say driver "$(journalctl -u llmproxy -o cat | grep -o 'io_uring\|epoll' | head -n 1)"
systemctl reload llmproxy; say reload $?
cp /etc/llmproxy/config.yaml /good
echo "nonsense: [" >>/etc/llmproxy/config.yaml
systemctl reload llmproxy; say broken-reload $?
cp /good /etc/llmproxy/config.yaml
: >/run/llmproxy/mine
say ready "$(systemctl show llmproxy -p StatusText --value)"
# Starts a stream of some seconds, and waits for its first bytes.
stream() {
rm -f /stream
bash -c 'exec 5<>/dev/tcp/127.0.0.1/8000
    body="{\"model\": \"m\", \"stream\": true, \"messages\": []}"
    printf "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" >&5
    printf "x-mock-tokens: 60\r\nx-mock-gap-ms: 200\r\nConnection: close\r\n" >&5
    printf "Content-Length: %s\r\n\r\n%s" ${#body} "$body" >&5
    exec cat <&5' >/stream &
stream=$!
until grep -q data: /stream; do sleep 0.1; done
}
# The package is upgraded while a stream runs.
first=$(main MainPID)
stream
dpkg -i /*.deb; say package $?
second=$(main MainPID)
say upgraded "$(systemctl is-active llmproxy) $(main NRestarts) $(kill -0 $first && echo both)"
[ "$first" != "$second" ]; say other-main $?
llmproxy health -c /etc/llmproxy/config.yaml; say upgraded-health $?
wait $stream; say whole "$(grep -c 'DONE' /stream)"
while kill -0 $first; do sleep 0.1; done
say still-main "$(systemctl is-active llmproxy) $([ "$(main MainPID)" = $second ] && echo same)"
systemctl reload llmproxy; say upgraded-reload $?
# A successor dies while the old process still has a stream: that one is the main process again,
# and its end, which is a failure, has the service started anew.
stream
llmproxy upgrade --pid "$second"; say dying $?
third=$(main MainPID)
kill -KILL "$third"
until [ "$(main MainPID)" = "$second" ]; do sleep 0.1; done
say back "$(systemctl is-active llmproxy) $(main NRestarts)"
wait $stream; say whole-too "$(grep -c 'DONE' /stream)"
until [ "$(main NRestarts)" = 1 ] && llmproxy health -c /etc/llmproxy/config.yaml; do sleep 0.1; done
kill -KILL "$(main MainPID)"
until [ "$(main NRestarts)" = 2 ] && llmproxy health -c /etc/llmproxy/config.yaml; do sleep 0.1; done
say kept "$(ls /run/llmproxy/mine)"
install -D -m 644 /usr/share/doc/llmproxy/off-gpu-cores.conf \
    /etc/systemd/system/llmproxy.service.d/off-gpu-cores.conf
sed -i 's/^CPUAffinity=.*[0-9].*/CPUAffinity=0/' \
    /etc/systemd/system/llmproxy.service.d/off-gpu-cores.conf
install -D -m 644 /usr/share/doc/llmproxy/low-ports.conf \
    /etc/systemd/system/llmproxy.service.d/low-ports.conf
sed -i 's/":8000"/":443"/' /etc/llmproxy/config.yaml
systemctl daemon-reload
systemctl restart llmproxy; say restart $?
until llmproxy health -c /etc/llmproxy/config.yaml; do sleep 0.1; done
say port "$(journalctl -u llmproxy -o cat | grep -o '::]:443' | head -n 1)"
runuser -u llmproxy -- llmproxy upgrade --pid "$(main MainPID)" 2>/rights
say rights "$? $(grep -c 'run this as root' /rights)"
old=$(main MainPID)
llmproxy upgrade --pid "$old"; say rights-of-root $?
# A stop before the old one is gone would cut the new one off.
while [ -e "/proc/$old" ]; do sleep 0.1; done
say cpus "$(grep Cpus_allowed_list /proc/$(main MainPID)/status)"
rm -r /etc/systemd/system/llmproxy.service.d
cp /good /etc/llmproxy/config.yaml
install -m 644 /usr/share/doc/llmproxy/llmproxy.socket /etc/systemd/system/
systemctl daemon-reload
systemctl stop llmproxy; systemctl start llmproxy.socket
# Nothing runs, and whoever comes is served.
say down "$(systemctl is-active llmproxy)"
llmproxy health -c /etc/llmproxy/config.yaml; say activated $?
say activated-by "$(journalctl -u llmproxy -o cat | grep -c 'a socket of the service manager')"
systemctl restart llmproxy & llmproxy health -c /etc/llmproxy/config.yaml; say over-restart $?
wait $!; say activated-restart $?
old=$(main MainPID)
llmproxy upgrade -c /etc/llmproxy/config.yaml; say activated-upgrade $?
while [ -e "/proc/$old" ]; do sleep 0.1; done
llmproxy health -c /etc/llmproxy/config.yaml; say activated-health $?
systemctl stop llmproxy.socket; rm /etc/systemd/system/llmproxy.socket; systemctl daemon-reload
systemctl stop llmproxy; say stop $?
say result "$(main Result) $(main ExecMainStatus)"
say still "$(ls /run/llmproxy/mine)"
dpkg -P llmproxy; say purge $?
say left "$(systemctl is-active llmproxy) $(ls -d /run/llmproxy /etc/llmproxy 2>/dev/null)"
rm -rf /etc/systemd/system/llmproxy.service.d
systemctl daemon-reload
/repository/scripts/install --binary /binary; say install $?
say installed "$(systemctl is-active llmproxy) $(systemctl is-enabled llmproxy)"
first=$(main MainPID)
/repository/scripts/install --binary /binary; say again $?
[ "$(main MainPID)" != "$first" ]; say other-process $?
while [ -e "/proc/$first" ]; do sleep 0.1; done
/repository/scripts/install --uninstall --purge; say uninstall $?
say gone "$(systemctl is-active llmproxy) $(ls -d /run/llmproxy /etc/llmproxy 2>/dev/null)"
journalctl -u llmproxy --no-pager
systemctl poweroff
"""
ONCE = """[Unit]
After={after}
[Service]
Type={kind}
ExecStart={command}
[Install]
WantedBy=multi-user.target
"""


class Booted(unittest.TestCase):
    def test_its_life_under_systemd(self):
        """Catches: whatever systemd does with the unit that no reader of the file foresees."""
        common.needs_root()
        nspawn = common.tool("systemd-nspawn")
        root = common.bare_root(self, with_systemd=True)
        package = run(DEB, "--fast", "--binary", common.binary("llmproxy"), "--out", root).strip()
        inside(root, "dpkg", "-i", "/" + os.path.basename(package))
        shutil.copy(common.binary("mock-engine"), os.path.join(root, "usr/bin/mock-engine"))
        self.unit(root, "engine", "local-fs.target", "exec",
                  "/usr/bin/mock-engine --listen 127.0.0.1:8080")
        self.unit(root, "probe", "llmproxy.service engine.service", "oneshot", "/probe")
        with open(os.path.join(root, "probe"), "w", encoding="utf-8") as file:
            file.write(PROBE)
        os.chmod(os.path.join(root, "probe"), 0o755)
        with open(os.path.join(root, "etc/llmproxy/config.yaml"), "a", encoding="utf-8") as file:
            file.write("health_check: {interval: 200ms, healthy_threshold: 1}\n")
        # For scripts/install, which comes second.
        shutil.copy(common.binary("llmproxy"), os.path.join(root, "binary"))
        run("umount", os.path.join(root, "proc"))
        # Neither the machine's systemd, which may not run, nor its network is asked for anything.
        done = subprocess.run([nspawn, "--directory", root, "--boot", "--register=no",
                               "--keep-unit", "--private-network", "--quiet",
                               f"--bind-ro={common.REPO}:/repository"], text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=300,
                              stderr=subprocess.STDOUT, check=False)
        if not os.path.exists(os.path.join(root, "found")):
            self.skipTest(f"no container can be booted here: {done.stdout[-300:]!r}")
        with open(os.path.join(root, "found"), encoding="utf-8") as file:
            text = file.read()
        found = dict(re.findall(r"^FOUND ([a-z-]+): (.*)$", text, re.M))
        self.judge(found, text)

    def judge(self, found, text):
        self.assertEqual(found.get("active"), "active", text)
        self.assertEqual(found["user"], "llmproxy", text)
        self.assertEqual([found[step] for step in ("reload", "broken-reload", "restart", "stop")],
                         ["0", "1", "0", "0"], text)
        for step in ("kept", "still"):
            self.assertEqual(found[step], "/run/llmproxy/mine", text)
        self.assertIn("Serving", found["ready"], text)
        self.assertEqual((found["package"], found["upgraded"]), ("0", "active 0 both"), text)
        for step in ("other-main", "upgraded-health", "upgraded-reload", "activated",
                     "over-restart", "activated-restart", "activated-upgrade", "activated-health"):
            self.assertEqual(found[step], "0", step + text)
        self.assertEqual((found["whole"], found["still-main"]), ("1", "active same"), text)
        self.assertEqual((found["dying"], found["back"], found["whole-too"]),
                         ("0", "active 0", "1"), text)
        self.assertEqual((found["rights"], found["rights-of-root"]), ("1 1", "0"), text)
        self.assertEqual((found["down"], found["activated-by"]), ("inactive", "1"), text)
        self.assertEqual(found["port"], "::]:443", text)
        self.assertEqual(found["cpus"].split(), ["Cpus_allowed_list:", "0"], text)
        self.assertEqual(found["result"], "success 0", text)
        self.assertEqual((found["purge"], found["left"].strip()), ("0", "inactive"), text)

        steps = [found.get(step) for step in ("install", "again", "other-process", "uninstall")]
        self.assertEqual(steps, ["0"] * 4, text)
        self.assertEqual(found["installed"], "active enabled", text)
        self.assertEqual(found["gone"].strip(), "inactive", text)

    def unit(self, root, name, after, kind, command):
        folder = os.path.join(root, "etc/systemd/system")
        with open(os.path.join(folder, f"{name}.service"), "w", encoding="utf-8") as file:
            file.write(ONCE.format(after=after, kind=kind, command=command))
        os.symlink(f"../{name}.service",
                   os.path.join(folder, f"multi-user.target.wants/{name}.service"))

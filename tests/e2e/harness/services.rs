//! Real servers of a test's own: Redis, MariaDB and PostgreSQL from Debian's packages, each on a
//! port and in a folder that nobody else has, gone with their owner. `scripts/test` installs them.

use super::process::Process;
use super::scratch::Scratch;
use super::{await_some, await_until, SOON};
use rustix::process::{kill_process, Pid, Signal};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{chown, symlink, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A server may need so long to begin or to end: two cores run everything else too.
const SLOWLY: Duration = Duration::from_secs(60);

/// The user and the password of MariaDB and PostgreSQL, and the name of the database.
pub const USER: &str = "llmproxy";
/// Not a word that stands anywhere else, so that a test can search for it.
pub const PASSWORD: &str = "s3cr3t-hunter2";
/// The database that is there.
pub const DATABASE: &str = "metering";

/// The user `nobody`: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;

/// Rows of a query, each value as text; `None` is NULL.
pub type Rows = Vec<Vec<Option<String>>>;

/// Debian's package of the tools has the server's program too, under the name of another.
const REDIS: &[&str] = &["redis-server", "/usr/bin/redis-check-rdb"];
const MARIADBD: &[&str] = &["mariadbd", "/usr/sbin/mariadbd"];
const POSTGRES: &[&str] = &["postgres", "/usr/lib/postgresql/15/bin/postgres"];
const INITDB: &[&str] = &["initdb", "/usr/lib/postgresql/15/bin/initdb"];

/// How a product is run.
struct Product {
    /// With a folder and on a port.
    arguments: fn(&Path, u16) -> Vec<String>,
    ready: fn(&Process, SocketAddr) -> bool,
    /// Ends it in good order, and fast.
    ending: Signal,
}

/// A process that can be stopped and started again on its port, with what it keeps.
struct Server {
    scratch: Scratch,
    port: u16,
    /// What starts the program, if it is not started itself.
    way: Vec<String>,
    program: PathBuf,
    product: Product,
    /// Further arguments.
    more: Vec<String>,
    process: Option<Process>,
}

impl Server {
    /// One that does not run yet, on a port of its own.
    fn new(scratch: Scratch, program: PathBuf, product: Product) -> Server {
        let (way, more) = (Vec::new(), Vec::new());
        Server { scratch, port: free_port(), way, program, product, more, process: None }
    }

    /// The same, running.
    fn started(mut self) -> Server {
        self.start();
        self
    }

    fn start(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let way: Vec<&str> = self.way.iter().map(String::as_str).collect();
        let mut arguments = (self.product.arguments)(self.scratch.path(), self.port);
        arguments.extend_from_slice(&self.more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let process = Process::start_through(&way, &self.program, &arguments);
        let name = self.program.display();
        await_until(&format!("{name} accepts"), SLOWLY, || {
            let ended = process.try_status();
            assert!(ended.is_none(), "{name} ended: {ended:?}\n{}", process.stderr.text());
            (self.product.ready)(&process, self.addr())
        });
        self.process = Some(process);
    }

    fn stop(&mut self, signal: Signal) {
        if let Some(process) = self.process.take() {
            process.signal(signal);
            process.wait(SLOWLY);
        }
    }

    /// To it and to the processes that it has for its clients.
    fn signal_all(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it runs");
        // First itself, so that it makes no more of them.
        process.signal(signal);
        for child in children(process.pid()) {
            // One that has just ended is as silent.
            let _ = kill_process(Pid::from_raw(child).unwrap(), signal);
        }
    }

    /// Holds it and the processes that it has for its clients. A signal reaches the threads of a
    /// process one after the other: until each of them stands, one may still answer.
    fn freeze_all(&self) {
        self.signal_all(Signal::STOP);
        let pid = self.process.as_ref().expect("it runs").pid();
        let all = [vec![pid.cast_signed()], children(pid)].concat();
        await_until("all of its threads stand", SOON, || all.iter().all(|pid| stands(*pid)));
    }

    fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

/// The processes that a process has made.
fn children(pid: u32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// Whether each thread of a process is stopped; of one that has ended, too.
fn stands(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state is behind the name, which is in brackets and may have any letter.
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        state.is_none_or(|state| state.starts_with(['T', 't', 'Z', 'X']))
    })
}

/// What all three can be asked and told.
macro_rules! stops_and_starts {
    ($name:ident of $($program:ident),+) => {
        impl $name {
            /// Whether the machine has it.
            pub fn is_there() -> bool {
                [$($program),+].into_iter().all(|names| find(names).is_some())
            }

            /// Where it listens.
            pub fn addr(&self) -> SocketAddr {
                self.server.addr()
            }

            /// Ends it in good order; what it was told is kept.
            pub fn stop(&mut self) {
                self.server.stop(self.server.product.ending);
            }

            /// Ends it as a power cut would.
            pub fn kill(&mut self) {
                self.server.stop(Signal::KILL);
            }

            /// Starts it on the same port with what it kept, and waits until it accepts.
            pub fn start_again(&mut self) {
                self.server.start();
            }

            /// Holds it: connections stay, and nothing is answered.
            pub fn freeze(&self) {
                self.server.freeze_all();
            }

            /// Lets it go on.
            pub fn thaw(&self) {
                self.server.signal_all(Signal::CONT);
            }
        }
    };
}

/// A Redis server without a password.
pub struct Redis {
    server: Server,
}

stops_and_starts!(Redis of REDIS);

impl Redis {
    /// Starts one with an empty database. What it is told is on the disk before it answers.
    pub fn start() -> Redis {
        Redis::start_with(Scratch::new(), Vec::new())
    }

    /// The same with further arguments, and files in its folder.
    pub fn start_with(scratch: Scratch, more: Vec<String>) -> Redis {
        let program = scratch.file("redis-server");
        symlink(installed(REDIS), &program).unwrap();
        let product = Product {
            arguments: |folder, port| {
                let port = port.to_string();
                let folder = folder.to_string_lossy();
                let all = ["--port", &port, "--bind", "127.0.0.1", "--dir", &folder, "--save", ""];
                let kept = ["--appendonly", "yes", "--appendfsync", "always"];
                all.iter().chain(&kept).map(|text| (*text).to_owned()).collect()
            },
            ready: |_, addr| ask(addr, b"PING\r\n").is_some_and(|said| said.starts_with(b"+PONG")),
            ending: Signal::TERM,
        };
        let server = Server { more, ..Server::new(scratch, program, product) };
        Redis { server: server.started() }
    }

    /// `redis://host:port`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }
}

/// A MariaDB server with one user and one empty database.
pub struct MariaDb {
    server: Server,
}

stops_and_starts!(MariaDb of MARIADBD);

impl MariaDb {
    /// Starts one.
    pub fn start() -> MariaDb {
        MariaDb::start_with(&[])
    }

    /// Starts one with further arguments.
    pub fn start_with(more: &[&str]) -> MariaDb {
        let scratch = Scratch::new();
        let program = installed(MARIADBD);
        std::fs::create_dir(scratch.file("data")).unwrap();
        // What `mariadb-install-db` does, without the pages of help: half a second.
        let mut tables = "create database mysql;\nuse mysql;\n".to_owned();
        for part in ["system_tables", "performance_tables", "system_tables_data"] {
            let path = format!("/usr/share/mysql/mysql_{part}.sql");
            tables.push_str(&std::fs::read_to_string(path).unwrap());
        }
        let tables = scratch.write("tables.sql", tables);
        scratch.write(
            "init.sql",
            format!(
                "CREATE DATABASE IF NOT EXISTS {DATABASE};\n\
                 CREATE USER IF NOT EXISTS {USER}@'%' IDENTIFIED BY '{PASSWORD}';\n\
                 GRANT ALL ON *.* TO {USER}@'%' WITH GRANT OPTION;\n"
            ),
        );
        let said = Command::new(&program)
            .args(maria_arguments(scratch.path()))
            .arg("--bootstrap")
            .stdin(std::fs::File::open(tables).unwrap())
            .output()
            .unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let product = Product {
            arguments: |folder, port| {
                let mut all = maria_arguments(folder);
                all.push("--bind-address=127.0.0.1".into());
                all.push(format!("--port={port}"));
                all.push(format!("--socket={}", folder.join("sock").display()));
                all.push(format!("--pid-file={}", folder.join("pid").display()));
                all.push(format!("--init-file={}", folder.join("init.sql").display()));
                all
            },
            // Its greeting: a packet of protocol version 10. It speaks first.
            ready: |_, addr| ask(addr, b"").is_some_and(|said| said.get(4) == Some(&10)),
            ending: Signal::TERM,
        };
        let more = more.iter().map(|text| (*text).to_owned()).collect();
        let server = Server { more, ..Server::new(scratch, program, product) };
        MariaDb { server: server.started() }
    }

    /// The form that Go programs use.
    pub fn dsn(&self) -> String {
        self.dsn_with(PASSWORD, DATABASE)
    }

    /// The same with another password or database.
    pub fn dsn_with(&self, password: &str, database: &str) -> String {
        format!("{USER}:{password}@tcp({})/{database}", self.addr())
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.server.scratch.file("sock")
    }

    /// Runs statements, and gives the rows of the first.
    pub fn query(&self, statements: &str) -> Rows {
        use mysql::prelude::Queryable;
        let options = mysql::OptsBuilder::new()
            .ip_or_hostname(Some("127.0.0.1"))
            .tcp_port(self.server.port)
            .user(Some(USER))
            .pass(Some(PASSWORD))
            .db_name(Some(DATABASE))
            .prefer_socket(false)
            .init(vec!["SET NAMES utf8mb4"]);
        let mut connection = mysql::Conn::new(options).unwrap();
        let rows: Vec<mysql::Row> = connection.query(statements).unwrap();
        let text = |value| match value {
            mysql::Value::NULL => None,
            mysql::Value::Bytes(bytes) => Some(String::from_utf8(bytes).unwrap()),
            other => Some(other.as_sql(true)),
        };
        rows.into_iter().map(|row| row.unwrap().into_iter().map(text).collect()).collect()
    }
}

/// What both the making of its tables and its running need. Small and without forcing the disk.
fn maria_arguments(folder: &Path) -> Vec<String> {
    let mut all = vec!["--no-defaults".to_owned()];
    if is_root() {
        // It refuses to run as root unless told so by name.
        all.push("--user=root".to_owned());
    }
    all.push(format!("--datadir={}", folder.join("data").display()));
    all.push(format!("--tmpdir={}", folder.display()));
    for small in [
        "--innodb-log-file-size=8M",
        "--innodb-buffer-pool-size=16M",
        "--innodb-flush-log-at-trx-commit=2",
        "--skip-innodb-doublewrite",
        "--skip-name-resolve",
        "--character-set-server=latin1", // what a program must not rely on
        "--default-time-zone=+05:00",    // nor on this
        "--sql-mode=",                   // nor on its being strict
    ] {
        all.push(small.to_owned());
    }
    all
}

/// A PostgreSQL server with one user and one empty database.
pub struct Postgres {
    server: Server,
}

stops_and_starts!(Postgres of POSTGRES, INITDB);

impl Postgres {
    /// Starts one. Passwords are asked for by SCRAM.
    pub fn start() -> Postgres {
        let scratch = Scratch::new();
        let data = scratch.file("data");
        let password = scratch.write("password", PASSWORD);
        std::fs::create_dir(&data).unwrap();
        let mut way = Vec::new();
        if is_root() {
            for path in [scratch.path(), &data, &password] {
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            // A new user forgets the parent-death signal: it is set once more.
            let user = format!("--reuid={NOBODY} --regid={NOBODY} --clear-groups");
            let all = format!("setpriv {user} --pdeathsig KILL --");
            way = all.split(' ').map(str::to_owned).collect();
        }
        std::fs::set_permissions(&data, PermissionsExt::from_mode(0o700)).unwrap();
        let made = Command::new(way.first().map_or("env", String::as_str))
            .args(way.iter().skip(1))
            .arg(installed(INITDB))
            .args(["--no-sync", "--locale=C", "--encoding=UTF8", "--auth=scram-sha-256"])
            .args(["-U", USER, "-D", &data.to_string_lossy()])
            .arg(format!("--pwfile={}", password.display()))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let product = Product {
            arguments: |folder, port| {
                let mut all = vec!["-D".to_owned(), folder.join("data").display().to_string()];
                for setting in [
                    format!("port={port}"),
                    "listen_addresses=127.0.0.1".to_owned(),
                    format!("unix_socket_directories={}", folder.display()),
                    "fsync=off".to_owned(), // survives the end of the process, not of the machine
                    "shared_buffers=16MB".to_owned(),
                    "jit=off".to_owned(),
                    "lc_messages=C".to_owned(),
                ] {
                    all.extend(["-c".to_owned(), setting]);
                }
                all
            },
            ready: |process, _| process.stderr.text().contains("ready to accept connections"),
            // A fast shutdown: clients are cut off.
            ending: Signal::INT,
        };
        let server = Server { way, ..Server::new(scratch, installed(POSTGRES), product) };
        let postgres = Postgres { server: server.started() };
        postgres.query_at("postgres", &format!("CREATE DATABASE {DATABASE}"));
        postgres
    }

    /// The address as a URL.
    pub fn dsn(&self) -> String {
        self.dsn_with(PASSWORD, DATABASE)
    }

    /// The same with another password or database.
    pub fn dsn_with(&self, password: &str, database: &str) -> String {
        format!("postgres://{USER}:{password}@{}/{database}", self.addr())
    }

    /// The folder of its Unix socket.
    pub fn socket_folder(&self) -> &Path {
        self.server.scratch.path()
    }

    /// Its folder of data, where certificates belong.
    pub fn data(&self) -> PathBuf {
        self.server.scratch.file("data")
    }

    /// Gives a file to the user that it runs as.
    pub fn own(&self, path: &Path) {
        if is_root() {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    /// Runs statements, and gives the rows of all of them.
    pub fn query(&self, statements: &str) -> Rows {
        self.query_at(DATABASE, statements)
    }

    fn query_at(&self, database: &str, statements: &str) -> Rows {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dsn = self.dsn_with(PASSWORD, database);
        let messages = runtime.block_on(async {
            let tls = tokio_postgres::NoTls;
            let (client, connection) = tokio_postgres::connect(&dsn, tls).await.unwrap();
            tokio::spawn(connection);
            client.simple_query(statements).await.unwrap()
        });
        let row = |message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect())
            }
            _ => None,
        };
        messages.into_iter().filter_map(row).collect()
    }
}

impl Drop for Postgres {
    /// An immediate shutdown: killed, it would leave a piece of shared memory behind.
    fn drop(&mut self) {
        if let Some(process) = &self.server.process {
            self.server.signal_all(Signal::CONT);
            process.signal(Signal::QUIT);
            await_some("postgres ends", SLOWLY, || process.try_status());
        }
    }
}

/// The first of these programs that is there: a path, or a name of the search path.
pub(super) fn find(names: &[&str]) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&folders).collect();
    let in_folders = |name: &&str| folders.iter().map(|f| f.join(name)).collect::<Vec<_>>();
    // Joined to a folder, a whole path stays what it is.
    names.iter().flat_map(in_folders).find(|path| path.is_file())
}

/// The same, where a test cannot do without.
pub(super) fn installed(names: &[&str]) -> PathBuf {
    find(names).unwrap_or_else(|| panic!("not installed: {names:?}"))
}

/// Says something to a port, and gives the first that it says.
fn ask(addr: SocketAddr, word: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(word).ok()?;
    let mut said = vec![0; 128];
    let read = stream.read(&mut said).ok()?;
    said.truncate(read);
    Some(said)
}

/// A port that nobody listens on, below those that the kernel gives to outgoing connections: it
/// must be free again after a stop.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let base = std::process::id().wrapping_mul(61);
    let port = || {
        let number = base.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 15_000 + u16::try_from(number % 16_000).unwrap();
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok().map(|_| port)
    };
    await_some("a free port", SLOWLY, port)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

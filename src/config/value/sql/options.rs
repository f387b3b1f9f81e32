//! What stands behind the `?` of a database's address. Each option is done as its driver does it,
//! or means nothing for an insert, or is refused at the start: one that is silently left out could
//! be the one that encrypts.

use super::SqlServer;
use jiff::tz::TimeZone;
use std::path::PathBuf;

/// How much of TLS is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Plain.
    Off,
    /// TLS when the server has it, with any certificate.
    IfOffered,
    /// TLS with any certificate.
    Unchecked,
    /// TLS with a certificate of a trusted authority, for whatever name.
    Authority,
    /// TLS with a certificate of a trusted authority for this host.
    Full,
}

/// Options of a MySQL address, as go-sql-driver has them.
#[derive(Debug, Clone, PartialEq)]
pub struct MysqlOptions {
    /// Off, unchecked or full.
    pub tls: Tls,
    /// Zone of DATETIME columns.
    pub zone: TimeZone,
    /// The password may go in clear to a server that asks for it.
    pub cleartext: bool,
    /// Statements that set variables of the session.
    pub variables: Vec<String>,
    /// What a person should know: options without effect, and such that the server may not know.
    pub remarks: Vec<String>,
}

/// Options of a PostgreSQL address, as libpq has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresOptions {
    /// `sslmode`.
    pub tls: Tls,
    /// `sslrootcert`; `None` = the roots of the system.
    pub roots: Option<PathBuf>,
    /// `application_name`.
    pub application: Option<String>,
    /// `options`, with the variables of the session.
    pub options: String,
    /// A server that only reads is left for another.
    pub read_write: bool,
    /// What a person should know: options without effect, and such that the server may not know.
    pub remarks: Vec<String>,
}

/// Variables of a session that people set in addresses. Others are set as well, with a remark: a
/// name that the server does not know makes it refuse the connection.
const MYSQL_VARIABLES: &[&str] = &[
    "sql_mode",
    "time_zone",
    "wait_timeout",
    "interactive_timeout",
    "net_read_timeout",
    "net_write_timeout",
    "lock_wait_timeout",
    "innodb_lock_wait_timeout",
    "max_execution_time",
    "max_statement_time",
    "transaction_isolation",
    "tx_isolation",
    "autocommit",
    "foreign_key_checks",
    "unique_checks",
    "sql_log_bin",
    "group_concat_max_len",
];
const POSTGRES_VARIABLES: &[&str] = &[
    "search_path",
    "timezone",
    "datestyle",
    "intervalstyle",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
    "synchronous_commit",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "work_mem",
    "role",
    "row_security",
    "bytea_output",
    "geqo",
    "tcp_user_timeout",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_keepalives_count",
];
/// Of clients in Go, and of libpq: no server knows them, and there is nothing here that they set.
const POSTGRES_CLIENTS: &[&str] = &[
    "connect_timeout",
    "sslcompression",
    "sslsni",
    "default_query_exec_mode",
    "statement_cache_capacity",
    "statement_cache_mode",
    "description_cache_capacity",
    "prefer_simple_protocol",
    "load_balance_hosts",
    "min_protocol_version",
    "max_protocol_version",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "krbsrvname",
    "gsslib",
    "gssdelegation",
    "replication",
    "fallback_application_name",
    "disable_prepared_binary_result",
    "servicefile",
    "sslcrldir",
    "sslcertmode",
    "require_auth",
    "requiressl",
    "scram_client_key",
    "scram_server_key",
    "sslkeylogfile",
    "channel_binding",
    "gssencmode",
];

/// What cannot be done here, whatever its value, or with other values than those that are named.
const POSTGRES_REFUSED: &[&str] = &[
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslcrl",
    "sslnegotiation",
    "target_session_attrs",
    "client_encoding",
    "service",
    "passfile",
    "user",
    "password",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "ssl",
];

fn without_effect(name: &str) -> String {
    format!("dsn option {name}: has no effect here")
}

fn unknown_variable(name: &str) -> String {
    format!(
        "dsn option {name}: is taken for a variable of the session; a server that does not know \
         it refuses the connection"
    )
}

/// Reads those of MySQL.
///
/// # Errors
/// A line for a person, without a secret.
pub fn mysql(server: &SqlServer) -> Result<MysqlOptions, String> {
    let mut options = MysqlOptions {
        tls: Tls::Off,
        zone: TimeZone::UTC,
        cleartext: false,
        variables: Vec::new(),
        remarks: Vec::new(),
    };
    for (name, value) in &server.options {
        let refused = || Err(format!("dsn option {name}={value}: cannot be done here"));
        match (name.as_str(), value.as_str()) {
            ("tls", "false") => options.tls = Tls::Off,
            ("tls", "true") => options.tls = Tls::Full,
            ("tls", "skip-verify") => options.tls = Tls::Unchecked,
            ("tls", _) => return refused(),
            ("loc", "Local") => options.zone = TimeZone::system(),
            ("loc", zone) => match TimeZone::get(zone) {
                Ok(zone) => options.zone = zone,
                Err(_) => return refused(),
            },
            ("charset", sets) if sets.split(',').any(|set| set.starts_with("utf8")) => {}
            ("charset", _) => return refused(),
            ("allowCleartextPasswords", "true") => options.cleartext = true,
            ("allowNativePasswords", "false") | ("allowOldPasswords", "true") => return refused(),
            ("serverPubKey" | "connectionAttributes" | "compress", _) => return refused(),
            // How answers are read, or what a text may hold: nothing that an insert sees.
            (
                "parseTime"
                | "timeTruncate"
                | "collation"
                | "multiStatements"
                | "clientFoundRows"
                | "columnsWithAlias"
                | "interpolateParams"
                | "allowCleartextPasswords"
                | "allowNativePasswords"
                | "allowOldPasswords",
                _,
            ) => {}
            // The time of a try is the reporter's.
            (
                "maxAllowedPacket"
                | "timeout"
                | "readTimeout"
                | "writeTimeout"
                | "checkConnLiveness"
                | "rejectReadOnly"
                | "allowAllFiles"
                | "allowFallbackToPlaintext",
                _,
            ) => options.remarks.push(without_effect(name)),
            // As in Go, any other is a variable of the session. Ours are set behind it.
            (variable, value) if is_word(variable) => {
                if !MYSQL_VARIABLES.contains(&variable.to_ascii_lowercase().as_str()) {
                    options.remarks.push(unknown_variable(variable));
                }
                options.variables.push(format!("SET {variable}={value}"));
            }
            _ => return refused(),
        }
    }
    Ok(options)
}

/// Reads those of PostgreSQL.
///
/// # Errors
/// A line for a person, without a secret.
pub fn postgres(server: &SqlServer) -> Result<PostgresOptions, String> {
    let mut options = PostgresOptions {
        tls: Tls::IfOffered,
        roots: None,
        application: None,
        options: String::new(),
        read_write: false,
        remarks: Vec::new(),
    };
    let mut variables = Vec::new();
    for (name, value) in &server.options {
        let refused = || Err(format!("dsn option {name}={value}: cannot be done here"));
        match (name.as_str(), value.as_str()) {
            ("sslmode", "disable") => options.tls = Tls::Off,
            ("sslmode", "prefer") => options.tls = Tls::IfOffered,
            ("sslmode", "require") => options.tls = Tls::Unchecked,
            ("sslmode", "verify-ca") => options.tls = Tls::Authority,
            ("sslmode", "verify-full") => options.tls = Tls::Full,
            // As JDBC writes it, and libpq reads it.
            ("ssl", "true") => options.tls = Tls::Unchecked,
            ("sslrootcert", "system") => options.roots = None,
            ("sslrootcert", path) if !path.is_empty() => options.roots = Some(path.into()),
            ("application_name", _) => options.application = Some(value.clone()),
            ("options", _) => options.options.clone_from(value),
            ("target_session_attrs", "any") => {}
            ("target_session_attrs", "read-write" | "primary") => options.read_write = true,
            ("client_encoding", set) if set.to_ascii_lowercase().starts_with("utf") => {}
            ("channel_binding" | "gssencmode", "disable" | "prefer") => {}
            // How programs in Go read answers.
            ("binary_parameters", _) => {}
            (name, _) if POSTGRES_REFUSED.contains(&name) => return refused(),
            ("channel_binding" | "gssencmode", "require") => return refused(),
            (name, _)
                if POSTGRES_CLIENTS.contains(&name)
                    || name.starts_with("keepalives")
                    || name.starts_with("pool_") =>
            {
                options.remarks.push(without_effect(name));
            }
            // As with lib/pq, any other is a variable of the session. With a point in its name it
            // is one of an extension, which any server takes.
            (variable, value) if variable.split('.').all(is_word) => {
                let is_known = POSTGRES_VARIABLES.contains(&variable.to_ascii_lowercase().as_str());
                if !is_known && !variable.contains('.') {
                    options.remarks.push(unknown_variable(variable));
                }
                let escaped = value.replace('\\', "\\\\").replace(' ', "\\ ");
                variables.push(format!("-c {variable}={escaped}"));
            }
            _ => return refused(),
        }
    }
    // libpq checks the authority too, once it has been told one.
    if options.tls == Tls::Unchecked && options.roots.is_some() {
        options.tls = Tls::Authority;
    }
    variables.insert(0, std::mem::take(&mut options.options));
    options.options = variables.join(" ").trim().to_owned();
    Ok(options)
}

fn is_word(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;
    use crate::config::value::SqlPlace;

    fn server(options: &[(&str, &str)]) -> SqlServer {
        SqlServer {
            place: SqlPlace::Tcp { host: "h".into(), port: 1 },
            others: Vec::new(),
            user: "u".into(),
            password: Secret::new("hunter2"),
            database: "d".into(),
            options: options.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        }
    }

    /// Catches: an option of the commonest address of Go programs that stops the start, or a zone
    /// that is not the one asked for.
    #[test]
    fn options_of_go_programs_are_done() {
        let gorm = [("charset", "utf8mb4"), ("parseTime", "True"), ("loc", "Local")];
        assert_eq!(mysql(&server(&gorm)).unwrap().zone, TimeZone::system());
        let options = mysql(&server(&[
            ("loc", "Asia/Shanghai"),
            ("tls", "skip-verify"),
            ("sql_mode", "'ANSI'"),
        ]))
        .unwrap();
        assert_eq!(options.zone, TimeZone::get("Asia/Shanghai").unwrap());
        assert_eq!(options.tls, Tls::Unchecked);
        assert_eq!(options.variables, ["SET sql_mode='ANSI'"]);
        assert_eq!(mysql(&server(&[("tls", "true")])).unwrap().tls, Tls::Full);
    }

    /// Catches: an option that cannot be done and is passed over, TLS above all.
    #[test]
    fn what_cannot_be_done_is_refused() {
        for option in [
            ("tls", "preferred"),
            ("tls", "my-config"),
            ("charset", "latin1"),
            ("loc", "Moon"),
            ("a;b", "1"),
            ("serverPubKey", "k"),
        ] {
            let said = mysql(&server(&[option])).unwrap_err();
            assert!(said.contains(option.0) && !said.contains("hunter2"), "{said}");
        }
        for option in [
            ("sslmode", "allow"),
            ("sslmode", "verify"),
            ("sslcert", "/c"),
            ("channel_binding", "require"),
            ("gssencmode", "require"),
            ("passfile", "/p"),
            ("client_encoding", "latin1"),
        ] {
            assert!(postgres(&server(&[option])).is_err(), "{option:?}");
        }
    }

    /// Catches: a mode that checks less than libpq does.
    #[test]
    fn modes_of_tls_mean_what_libpq_means() {
        let tls = |options: &[(&str, &str)]| postgres(&server(options)).unwrap().tls;
        assert_eq!(tls(&[]), Tls::IfOffered);
        assert_eq!(tls(&[("sslmode", "disable")]), Tls::Off);
        assert_eq!(tls(&[("sslmode", "require")]), Tls::Unchecked);
        assert_eq!(tls(&[("sslrootcert", "/ca"), ("sslmode", "require")]), Tls::Authority);
        assert_eq!(tls(&[("sslmode", "verify-ca")]), Tls::Authority);
        assert_eq!(tls(&[("sslmode", "verify-full")]), Tls::Full);
        let options = postgres(&server(&[
            ("TimeZone", "Asia/Shanghai"),
            ("options", "-c a=b"),
            ("search_path", "my schema"),
        ]));
        let wanted = "-c a=b -c TimeZone=Asia/Shanghai -c search_path=my\\ schema";
        assert_eq!(options.unwrap().options, wanted);
    }

    /// Catches: an option that is passed over without a word, or one that no server knows and that
    /// makes it refuse each connection.
    #[test]
    fn what_has_no_effect_is_named() {
        for name in ["pool_max_conns", "default_query_exec_mode", "connect_timeout"] {
            let options = postgres(&server(&[(name, "1")])).unwrap();
            assert_eq!(options.options, "");
            assert!(options.remarks[0].contains(name) && options.remarks.len() == 1);
        }
        let remarks = |options| postgres(&server(&[options])).unwrap().remarks;
        assert!(remarks(("serach_path", "x"))[0].contains("refuses the connection"));
        assert_eq!(remarks(("TimeZone", "UTC")), Vec::<String>::new());
        assert_eq!(remarks(("my.variable", "x")), Vec::<String>::new());
        let remarks = |options| mysql(&server(&[options])).unwrap().remarks;
        assert!(remarks(("readTimeout", "1s"))[0].contains("readTimeout"));
        assert!(remarks(("sqlmode", "ANSI"))[0].contains("refuses the connection"));
        assert_eq!(remarks(("parseTime", "true")), Vec::<String>::new());
    }
}

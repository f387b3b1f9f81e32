//! What stands behind the `?` of a database's address. Each option is done as its driver does it,
//! or means nothing for an insert, or is refused at the start: one that is silently left out could
//! be the one that encrypts.

use crate::config::plan::SqlServer;
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
    };
    for (name, value) in &server.options {
        let value = unescaped(&value.replace('+', " "));
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
            // How answers are read, or what a text may hold: nothing that an insert sees. The time
            // of a try is the reporter's.
            (
                "parseTime"
                | "timeTruncate"
                | "collation"
                | "multiStatements"
                | "clientFoundRows"
                | "columnsWithAlias"
                | "interpolateParams"
                | "maxAllowedPacket"
                | "timeout"
                | "readTimeout"
                | "writeTimeout"
                | "checkConnLiveness"
                | "rejectReadOnly"
                | "allowAllFiles"
                | "allowFallbackToPlaintext"
                | "allowCleartextPasswords"
                | "allowNativePasswords"
                | "allowOldPasswords",
                _,
            ) => {}
            // As in Go, any other is a variable of the session. Ours are set behind it.
            (variable, value) if is_word(variable) => {
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
    };
    let mut variables = Vec::new();
    for (name, value) in &server.options {
        let value = unescaped(value);
        let refused = || Err(format!("dsn option {name}={value}: cannot be done here"));
        match (name.as_str(), value.as_str()) {
            ("sslmode", "disable") => options.tls = Tls::Off,
            ("sslmode", "prefer") => options.tls = Tls::IfOffered,
            ("sslmode", "require") => options.tls = Tls::Unchecked,
            ("sslmode", "verify-ca") => options.tls = Tls::Authority,
            ("sslmode", "verify-full") => options.tls = Tls::Full,
            ("sslrootcert", "system") => options.roots = None,
            ("sslrootcert", path) if !path.is_empty() => options.roots = Some(path.into()),
            ("application_name" | "fallback_application_name", _) => {
                options.application = Some(value);
            }
            ("options", _) => options.options = value,
            ("target_session_attrs", "any") => {}
            ("target_session_attrs", "read-write" | "primary") => options.read_write = true,
            ("client_encoding", set) if set.to_ascii_lowercase().starts_with("utf") => {}
            ("channel_binding" | "gssencmode", "disable" | "prefer") => {}
            // The time of a try is the reporter's; the rest is how programs in Go read answers.
            ("connect_timeout" | "sslcompression" | "sslsni" | "binary_parameters", _) => {}
            (name, _) if name.starts_with("keepalives") || name.starts_with("pool_") => {}
            (
                "sslmode"
                | "sslrootcert"
                | "sslcert"
                | "sslkey"
                | "sslpassword"
                | "sslcrl"
                | "sslnegotiation"
                | "target_session_attrs"
                | "client_encoding"
                | "channel_binding"
                | "gssencmode"
                | "service"
                | "passfile"
                | "user"
                | "password"
                | "host"
                | "port"
                | "dbname",
                _,
            ) => return refused(),
            // As with lib/pq, any other is a variable of the session.
            (variable, value) if is_word(variable) => {
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

/// Percent-decoded; what is not well-formed stays as it is.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digit = |at: usize| behind.get(at).and_then(|b| char::from(*b).to_digit(16));
        rest = behind;
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).unwrap_or(b'%'));
                rest = behind.get(2..).unwrap_or_default();
            }
            _ => bytes.push(*first),
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;
    use crate::config::plan::SqlPlace;

    fn server(options: &[(&str, &str)]) -> SqlServer {
        SqlServer {
            place: SqlPlace::Tcp { host: "h".into(), port: 1 },
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
            ("loc", "Asia%2FShanghai"),
            ("tls", "skip-verify"),
            ("sql_mode", "%27ANSI%27"),
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
        assert_eq!(tls(&[("sslrootcert", "%2Fca"), ("sslmode", "require")]), Tls::Authority);
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

    proptest::proptest! {
        /// Catches: a panic on any bytes behind a percent sign.
        #[test]
        fn any_text_is_unescaped(text in "[%0-9a-fé]{0,12}") {
            let _ = unescaped(&text);
        }
    }
}

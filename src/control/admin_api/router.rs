//! Which handler a request is for.

use super::input::decoded;
use super::{fleet, keys, old, requests, AdminApi, AdminRequest, Answer, ApiFault, Call};
use crate::http::request::Method;

/// A thing that can be asked.
pub(super) struct Route {
    pub method: Method,
    /// `{name}` stands for any one part.
    pub path: &'static str,
    /// It is not for readers alone.
    pub changes: bool,
    pub handle: fn(&AdminApi, &Call<'_>) -> Answer,
}

const fn reads(
    method: Method,
    path: &'static str,
    handle: fn(&AdminApi, &Call<'_>) -> Answer,
) -> Route {
    Route { method, path, changes: false, handle }
}

const fn changes(
    method: Method,
    path: &'static str,
    handle: fn(&AdminApi, &Call<'_>) -> Answer,
) -> Route {
    Route { method, path, changes: true, handle }
}

/// All of them. Where two forms fit a path, the first one counts. The OpenAPI document has the
/// same.
pub(super) const ROUTES: &[Route] = &[
    changes(Method::Post, "/admin/api-keys", keys::create),
    reads(Method::Get, "/admin/api-keys", keys::list),
    changes(Method::Post, "/admin/api-keys/import", keys::import),
    reads(Method::Get, "/admin/api-keys/export", keys::export),
    reads(Method::Get, "/admin/api-keys/{key}", keys::show),
    changes(Method::Patch, "/admin/api-keys/{key}", keys::patch),
    changes(Method::Delete, "/admin/api-keys/{key}", keys::delete),
    reads(Method::Get, "/admin/api-keys/{key}/usage", keys::usage),
    changes(Method::Post, "/admin/api-keys/{key}/rotate", keys::rotate),
    reads(Method::Get, "/admin/usage", keys::usage_of_all),
    changes(Method::Post, "/admin/keys/create", old::create),
    changes(Method::Post, "/admin/keys/update", old::update),
    changes(Method::Post, "/admin/keys/delete", old::delete),
    reads(Method::Post, "/admin/keys/get", old::get),
    reads(Method::Post, "/admin/keys/list", old::list),
    changes(Method::Post, "/admin/keys/sync", old::sync),
    reads(Method::Get, "/admin/backends", fleet::backends),
    changes(Method::Post, "/admin/backends/{name}/drain", fleet::drain),
    changes(Method::Post, "/admin/backends/{name}/undrain", fleet::undrain),
    changes(Method::Patch, "/admin/backends/{name}/weight", fleet::weight),
    reads(Method::Get, "/admin/requests", requests::list),
    reads(Method::Get, "/admin/requests/{request_id}", requests::show),
    reads(Method::Get, "/admin/stats", fleet::stats),
    reads(Method::Get, "/admin/config", fleet::config),
    changes(Method::Post, "/admin/config/reload", fleet::reload),
    reads(Method::Get, "/admin/openapi.json", fleet::openapi),
];

/// Finds the route of a request, and what stands in its path for `{name}`.
pub(super) fn route(request: &AdminRequest) -> Result<(&'static Route, Vec<String>), ApiFault> {
    let mut allowed = Vec::new();
    let mut form = None;
    for route in ROUTES {
        let Some(parts) = fit(route.path, &request.path) else { continue };
        // A name of ours in the place of a key is none.
        if *form.get_or_insert(route.path) != route.path {
            continue;
        }
        if route.method.as_str() == request.method || is_head_of(route, request) {
            let parts: Result<Vec<String>, ApiFault> =
                parts.into_iter().map(|part| decoded(part, false)).collect();
            return Ok((route, parts?));
        }
        allowed.push(route.method.as_str());
    }
    if allowed.is_empty() {
        return Err(ApiFault::new(404, "not_found", "there is no such thing here"));
    }
    let mut fault = ApiFault::new(405, "method_not_allowed", "this is asked by another method");
    fault.field = Some(("Allow", allowed.join(", ")));
    Err(fault)
}

fn is_head_of(route: &Route, request: &AdminRequest) -> bool {
    route.method == Method::Get && request.method == Method::Head.as_str()
}

/// What stands for the `{name}`s, if a path is one of this form.
fn fit<'p>(form: &str, path: &'p str) -> Option<Vec<&'p str>> {
    let mut parts = Vec::new();
    let (mut wanted, mut given) = (form.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(parts),
            (Some(wanted), Some(given)) if wanted.starts_with('{') && !given.is_empty() => {
                parts.push(given);
            }
            (Some(wanted), Some(given)) if wanted == given => {}
            _ => return None,
        }
    }
}

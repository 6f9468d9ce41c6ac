//! Messages with a type of their own.

use serde::Serialize;

/// A message whose type's name travels with it. Written as JSON.
///
/// The name is the Rust type's own, without its path and parameters, unless it is given:
///
/// ```
/// use rendez_router::Message;
///
/// #[derive(serde::Serialize)]
/// struct GetUser {
///     id: String,
/// }
/// impl Message for GetUser {}
/// assert_eq!(GetUser::message_type(), "GetUser");
///
/// #[derive(serde::Serialize)]
/// struct Rename(String);
/// impl Message for Rename {
///     fn message_type() -> &'static str {
///         "users.rename.v2" // stays the same when the struct is renamed
///     }
/// }
/// assert_eq!(Rename::message_type(), "users.rename.v2");
/// ```
pub trait Message: Serialize + Send + Sync {
    /// The name of the type.
    #[must_use]
    fn message_type() -> &'static str {
        short_name(std::any::type_name::<Self>())
    }
}

/// A type's name without its path and its parameters.
fn short_name(full: &'static str) -> &'static str {
    let plain = full.split('<').next().unwrap_or(full);
    plain.rsplit("::").next().unwrap_or(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Wrapped<T>(T);
    impl<T: Serialize + Send + Sync> Message for Wrapped<T> {}

    #[test]
    fn names_have_no_path_and_no_parameters() {
        assert_eq!(Wrapped::<Vec<std::string::String>>::message_type(), "Wrapped");
        assert_eq!(short_name("u32"), "u32");
    }
}

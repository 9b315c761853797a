// SPDX-License-Identifier: Apache-2.0
//! A service's methods, typed: from one table come the trait that a server implements, ttrpc's side
//! of it, and what a client has to know of each request.

use crate::status::{Code, Status};
use prost::Message;

/// A request: which method takes it, and what that method answers. A client names neither.
pub trait Call: Message {
    type Answer: Message + Default;

    /// The service's full name: of the Task API's two, the newer one.
    const SERVICE: &'static str;
    /// The method, as the wire names it.
    const METHOD: &'static str;
}

/// A request out of its bytes.
///
/// # Errors
/// `InvalidArgument`.
pub fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, Status> {
    M::decode(payload).map_err(|e| Status::new(Code::InvalidArgument, format!("request: {e}")))
}

/// Makes of a table of methods
///
/// - the trait: an async method for each,
/// - `serve`: one call of ttrpc, for [`Service::call`](super::Service::call), logged with the ids
///   that its request has,
/// - [`Call`] for each request.
macro_rules! api {
    (
        $(#[$about:meta])*
        pub trait $Api:ident of $service:expr;
        $($name:literal $method:ident($Request:ty $(, $id:ident)*) -> $Answer:ty;)*
    ) => {
        $(impl Call for $Request {
            type Answer = $Answer;
            const SERVICE: &'static str = $service;
            const METHOD: &'static str = $name;
        })*

        $(#[$about])*
        pub trait $Api: 'static {
            type Error: Into<Status>;

            $(fn $method(
                self: &Rc<Self>,
                request: $Request,
                context: &Context,
            ) -> impl Future<Output = Result<$Answer, Self::Error>>;)*

            /// Sees each answer before it is sent, when nothing is left of what made it.
            fn answered(&self, _method: &str, answer: Answer) -> Answer {
                answer
            }
        }

        /// Answers one call.
        pub fn serve<T: $Api>(served: Rc<T>, call: Request) -> Pin<Box<dyn Future<Output = Answer>>> {
            Box::pin(async move {
                let Request { method, payload, context, .. } = call;
                let answer = match method.as_str() {
                    $($name => match decode::<$Request>(&payload) {
                        Ok(request) => {
                            log::debug!(concat!("{}", $(" ", stringify!($id), "={:?}"),*), method $(, request.$id)*);
                            // Each in a box of its own size: a Wait may last as long as the container.
                            let answer = Box::pin(served.$method(request, &context)).await;
                            answer.map(|answer| answer.encode_to_vec()).map_err(Into::into)
                        }
                        Err(status) => Err(status),
                    },)*
                    other => Err(Context::no_such_method(other)),
                };
                served.answered(&method, answer)
            })
        }
    };
}
pub(crate) use api;

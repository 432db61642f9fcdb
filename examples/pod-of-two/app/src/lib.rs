//! The app of the pod of two: `/` is the page that the sidecar wrote into the shared volume, `/sidecar` is what the
//! sidecar answers on the pod's own localhost.

use wstd::http::{Body, Client, Error, Request, Response, StatusCode};

/// Where both containers mount the shared emptyDir.
const PAGE: &str = "/shared/page.txt";
/// Where the sidecar listens: nobody outside the pod reaches it.
const SIDECAR: &str = "http://127.0.0.1:9000/";

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    match request.uri().path() {
        "/" => Ok(page()),
        "/sidecar" => ask_the_sidecar().await,
        other => {
            eprintln!("no such page: {other}");
            answer(StatusCode::NOT_FOUND, "try / or /sidecar\n".to_owned())
        }
    }
}

fn page() -> Response<Body> {
    match std::fs::read_to_string(PAGE) {
        Ok(page) => Response::new(page.into()),
        Err(error) => {
            eprintln!("cannot read {PAGE}: {error}");
            let mut response =
                Response::new("the sidecar has written no page yet\n".to_owned().into());
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    }
}

async fn ask_the_sidecar() -> Result<Response<Body>, Error> {
    let request = Request::get(SIDECAR).body(Body::empty())?;
    let mut reply = match Client::new().send(request).await {
        Ok(reply) => reply,
        Err(error) => {
            eprintln!("cannot reach the sidecar: {error}");
            return answer(StatusCode::BAD_GATEWAY, "the sidecar does not answer\n".to_owned());
        }
    };
    let said = reply.body_mut().str_contents().await?.to_owned();
    println!("the sidecar said: {}", said.trim_end());
    answer(StatusCode::OK, format!("the sidecar says: {said}"))
}

fn answer(status: StatusCode, text: String) -> Result<Response<Body>, Error> {
    Ok(Response::builder().status(status).body(text.into())?)
}

// An HTTP server in JavaScript: a component with the fetch event that browsers and edge platforms know. The platform serves its ports.
addEventListener('fetch', (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  const url = new URL(request.url);
  switch (url.pathname) {
    case '/healthz':
      return new Response('ok\n');
    case '/upper':
      return new Response((await request.text()).toUpperCase());
    default:
      return new Response(`hello from JavaScript ${url.pathname}\n`);
  }
}

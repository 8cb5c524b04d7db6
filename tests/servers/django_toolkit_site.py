"""A Django site with django-oauth-toolkit: authorization server and protected resource, both as the toolkit makes them.

    python -m tests.servers.django_toolkit_site FOLDER

Its database is in FOLDER. Ours are the login form, the buttons of the consent page, and the tool that is protected.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt

from tests.servers.asgi import serve

PERSON = "alice"
TOOLS = {"whoami": "mcp:read", "write": "mcp:write"}
PAGES = {
    "registration/login.html": "<form method=post>{% csrf_token %}{{ form }}<button>Log in</button></form>",
    # The toolkit's page has no way to refuse but an <input type=submit> without a name.
    "oauth2_provider/authorize.html": """<form method=post>{% csrf_token %}
        {% for field in form %}{% if field.is_hidden %}{{ field }}{% endif %}{% endfor %}
        {% for scope in scopes_descriptions %}<p>{{ scope }}</p>{% endfor %}
        <button name=allow value=Authorize>Authorize</button>
        <button name=refused value=cancel>Cancel</button></form>""",
}
TOOLKIT = {
    "SCOPES": {"mcp:read": "Read", "mcp:write": "Write"},
    "DCR_ENABLED": True,
    "DCR_REGISTRATION_PERMISSION_CLASSES": ["oauth2_provider.dcr.AllowAllDCRPermission"],
    "REFRESH_TOKEN_REUSE_PROTECTION": True,
    # What the toolkit will do by default from 4.0 on.
    "COMPLIANT_BCP_RFC9700_ACCESS_TOKEN_TRANSPORT": True,
    "COMPLIANT_BCP_RFC9700_AUTHZ_RESPONSE_ISS": True,
    "COMPLIANT_BCP_RFC9700_IMPLICIT_GRANT": True,
    "COMPLIANT_BCP_RFC9700_PASSWORD_GRANT": True,
    "COMPLIANT_BCP_RFC9700_PKCE_METHOD": True,
    "COMPLIANT_BCP_RFC9700_TOKEN_STORAGE": True,
}
LOADERS = [("django.template.loaders.locmem.Loader", PAGES), "django.template.loaders.app_directories.Loader"]

urlpatterns: list[Any] = []


def application(folder: Path) -> Any:
    """The ASGI application, its database made and filled."""
    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": folder / "site.sqlite3"}},
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.staticfiles",
            "oauth2_provider",
        ],
        LOGIN_URL="/login/",
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        OAUTH2_PROVIDER=TOOLKIT,
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],  # quick: of clients' secrets too
        ROOT_URLCONF=__name__,
        SECRET_KEY="for loopback tests only",
        STATIC_URL="/static/",
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "OPTIONS": {"loaders": LOADERS}}],
        USE_TZ=True,
    )
    django.setup()
    call_command("migrate", verbosity=0)
    _fill()
    return get_asgi_application()


def _fill() -> None:
    """What must be imported after `django.setup`."""
    from django.contrib.auth.models import User
    from django.contrib.auth.views import LoginView

    User.objects.create_user(PERSON, password=PERSON)
    urlpatterns.append(path("login/", LoginView.as_view()))
    urlpatterns.append(path("mcp", csrf_exempt(tool)))
    urlpatterns.append(path("named/mcp", csrf_exempt(named)))
    urlpatterns.append(path("", include("oauth2_provider.urls")))


def tool(request: HttpRequest) -> HttpResponse:
    """Tools over the stateless wire of MCP 2026-07-28; what each demands is checked by the toolkit's decorator."""
    from oauth2_provider.decorators import protected_resource_metadata

    message = json.loads(request.body)
    metadata = request.build_absolute_uri(f"/.well-known/oauth-protected-resource{request.path}")
    protected = protected_resource_metadata(scopes=[_needed(request)], resource_metadata_url=metadata)(_answer)
    answer: HttpResponse = protected(request, message["id"])
    return answer


def named(request: HttpRequest) -> HttpResponse:
    """The same for a site that says which scope is needed (RFC 6750 section 3), as the toolkit does not."""
    answer = tool(request)
    if "WWW-Authenticate" in answer:
        answer["WWW-Authenticate"] += f',scope="{_needed(request)}"'
    return answer


def _needed(request: HttpRequest) -> str:
    return TOOLS[json.loads(request.body)["params"]["name"]]


def _answer(request: Any, number: int) -> HttpResponse:
    text = {"type": "text", "text": request.resource_owner.username}
    return JsonResponse({"jsonrpc": "2.0", "id": number, "result": {"content": [text]}})


if __name__ == "__main__":
    serve(lambda _: application(Path(sys.argv[1])))

"""SQLAlchemy and Django over psycopg: what they ask to learn a schema."""

import io
import os
import warnings

import django
import sqlalchemy
from django.conf import settings
from django.core.management import call_command

warnings.simplefilter("ignore")
engine = sqlalchemy.create_engine("postgresql+psycopg://")
for schema in ("app", None):
    sqlalchemy.MetaData().reflect(engine, schema=schema, views=True)
about = sqlalchemy.inspect(engine)
about.get_schema_names()
for schema in ("app", "public"):
    for ask in (about.get_table_names, about.get_view_names, about.get_sequence_names, about.get_materialized_view_names):
        ask(schema)
    about.get_enums(schema)
    about.get_domains(schema)
about.get_view_definition("people", "app")
assert about.has_table("users", "app")
for table in ("users", "orders"):
    for ask in (
        about.get_columns,
        about.get_pk_constraint,
        about.get_foreign_keys,
        about.get_indexes,
        about.get_unique_constraints,
        about.get_check_constraints,
        about.get_table_comment,
    ):
        ask(table, "app")
engine.dispose()

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": os.environ["PGHOST"],
            "PORT": os.environ["PGPORT"],
            "USER": os.environ["PGUSER"],
            "NAME": os.environ["PGDATABASE"],
        }
    },
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
)
django.setup()
for command in ("inspectdb", "showmigrations"):
    call_command(command, stdout=io.StringIO())

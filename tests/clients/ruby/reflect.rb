# ActiveRecord over ruby-pg: what it asks when it connects, learns and dumps a schema, migrates, and first reads and writes.
require "active_record"
require "active_record/schema_dumper"
require "stringio"

ActiveRecord::Base.establish_connection(
  adapter: "postgresql", host: ENV["PGHOST"], port: ENV["PGPORT"], username: ENV["PGUSER"],
  database: ENV["PGDATABASE"]
)
ActiveRecord::Migration.verbose = false

class User < ActiveRecord::Base
  self.table_name = "app.users"
  has_many :orders
end

class Order < ActiveRecord::Base
  self.table_name = "app.orders"
  belongs_to :user, optional: true
end

class Item < ActiveRecord::Base; end

about = ActiveRecord::Base.connection
about.data_sources
(about.tables + %w[app.users app.orders app.events app.events_1]).each do |table|
  about.columns(table)
  about.primary_keys(table)
  about.indexes(table)
  about.foreign_keys(table)
  about.check_constraints(table) if about.supports_check_constraints?
  about.table_comment(table)
end
about.schema_names
about.views
about.extensions
about.enum_types if about.respond_to?(:enum_types)
about.current_database
about.encoding
about.collation
about.ctype
about.client_min_messages
about.schema_exists?("app")
about.table_exists?("app.users")
about.view_exists?("app.people")
about.index_name_exists?("app.users", "users_ssn_key")
about.default_sequence_name("app.users")
about.pk_and_sequence_for("app.users")
about.get_advisory_lock(4711)
about.release_advisory_lock(4711)
ActiveRecord::SchemaDumper.dump(about, StringIO.new)

class Grow < ActiveRecord::Migration[6.1]
  def change
    create_table(:notes) do |table|
      table.string :text, index: true
      table.references :user, foreign_key: { to_table: "app.users" }
      table.timestamps
    end
  end
end

folder = ActiveRecord::MigrationContext.new([], ActiveRecord::SchemaMigration)
folder.needs_migration?
ActiveRecord::SchemaMigration.create_table
ActiveRecord::InternalMetadata.create_table
ActiveRecord::InternalMetadata[:environment] = "test"
ActiveRecord::Migrator.new(:up, [Grow.new("Grow", 1)], ActiveRecord::SchemaMigration).migrate

class Note < ActiveRecord::Base
  belongs_to :user, optional: true
end

Note.transaction do
  note = Note.create!(text: "first")
  note.update!(text: "second")
  Note.transaction(requires_new: true) { note.touch }
end
User.includes(:orders).where("name LIKE ?", "x%").order(:id).limit(3).to_a
User.joins(:orders).group(:name).having("count(*) > 1").count
Item.create!(name: "a", tags: %w[x y], doc: { k: 1 })
Item.insert_all([{ name: "b" }, { name: "c" }])
Item.upsert({ id: 1, name: "d" }, unique_by: :id)
Item.where(name: %w[a b]).exists?
Item.find_by(name: "q")
Item.first!.with_lock { nil }
Item.where(id: 0).delete_all
Item.pluck(:id, :name)
Item.all.explain
about.reset!

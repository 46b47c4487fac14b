import java.sql.*;
import java.util.*;

/** pgjdbc: everything that asks the catalogs, as tools and object mappers do when they start. */
public class Metadata {
    static void all(ResultSet rows) throws SQLException {
        try (rows) {
            while (rows.next()) {}
        }
    }

    public static void main(String[] args) throws Exception {
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
        Properties login = new Properties();
        login.setProperty("user", System.getenv("PGUSER"));
        login.setProperty("sslmode", "disable");
        try (Connection connection = DriverManager.getConnection(url, login)) {
            DatabaseMetaData about = connection.getMetaData();
            all(about.getSchemas());
            all(about.getCatalogs());
            all(about.getTableTypes());
            all(about.getTables(null, "app", "%", null));
            all(about.getTables(null, null, "users", new String[] {"TABLE", "VIEW"}));
            all(about.getColumns(null, "app", "users", "%"));
            all(about.getPrimaryKeys(null, "app", "users"));
            all(about.getImportedKeys(null, "app", "orders"));
            all(about.getExportedKeys(null, "app", "users"));
            all(about.getCrossReference(null, "app", "users", null, "app", "orders"));
            all(about.getIndexInfo(null, "app", "orders", false, true));
            all(about.getIndexInfo(null, "app", "orders", true, true));
            all(about.getTypeInfo());
            all(about.getProcedures(null, "app", "%"));
            all(about.getProcedureColumns(null, "app", "%", "%"));
            all(about.getFunctions(null, "app", "%"));
            all(about.getFunctionColumns(null, "app", "%", "%"));
            all(about.getTablePrivileges(null, "app", "users"));
            all(about.getColumnPrivileges(null, "app", "users", "id"));
            all(about.getBestRowIdentifier(null, "app", "users", DatabaseMetaData.bestRowSession, true));
            all(about.getVersionColumns(null, "app", "users"));
            all(about.getUDTs(null, "app", "%", null));
            about.getMaxColumnNameLength();
            about.getSQLKeywords();
            connection.setReadOnly(true);
            connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            connection.getTransactionIsolation();
            connection.isValid(2);
            connection.getSchema();
            connection.setSchema("app");
            connection.createArrayOf("int4", new Object[] {1});
            try (PreparedStatement select = connection.prepareStatement("SELECT moods, p, name, id FROM app.users")) {
                ResultSetMetaData shape = select.getMetaData();
                for (int column = 1; column <= shape.getColumnCount(); column++) {
                    shape.getColumnTypeName(column);
                    shape.isNullable(column);
                    shape.isAutoIncrement(column);
                    shape.getTableName(column);
                    shape.getColumnClassName(column);
                }
            }
        }
    }
}

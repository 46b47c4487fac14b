import java.sql.*;
import java.util.*;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

/** pgjdbc: server-side prepared statements with binary transfer, fetch size, batches, COPY, transactions. */
public class Flow {
    static int checks;

    static void check(String what, boolean condition) {
        checks++;
        if (!condition) {
            System.err.println("pgjdbc: " + what);
            System.exit(1);
        }
    }

    static String ssn(String plain) {
        if (!"1".equals(System.getenv("MASKED"))) return plain;
        return "*".repeat(plain.length() - 4) + plain.substring(plain.length() - 4);
    }

    public static void main(String[] args) throws Exception {
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE")
            + "?sslmode=disable&prepareThreshold=2";
        Properties login = new Properties();
        login.setProperty("user", System.getenv("PGUSER"));
        if (System.getenv("PGPASSWORD") != null) login.setProperty("password", System.getenv("PGPASSWORD"));
        try (Connection connection = DriverManager.getConnection(url, login)) {
            try (PreparedStatement select = connection.prepareStatement("SELECT id, name, ssn FROM app.people WHERE id = ?")) {
                for (int round = 0; round < 6; round++) {
                    select.setInt(1, 2);
                    try (ResultSet rows = select.executeQuery()) {
                        check("prepared, round " + round, rows.next() && rows.getInt(1) == 2 && rows.getString(3).equals(ssn("212-09-9923")));
                    }
                }
            }
            connection.setAutoCommit(false);
            try (PreparedStatement all = connection.prepareStatement("SELECT n FROM app.numbers ORDER BY n")) {
                all.setFetchSize(300);
                long total = 0;
                try (ResultSet rows = all.executeQuery()) {
                    while (rows.next()) total += rows.getInt(1);
                }
                check("fetch size", total == 5000L * 5001 / 2);
            }
            try (PreparedStatement insert = connection.prepareStatement("INSERT INTO app.items (id, label, active, at) VALUES (?, ?, ?, ?)")) {
                for (int n = 0; n < 20; n++) {
                    insert.setInt(1, n);
                    insert.setString(2, "batch " + n);
                    insert.setBoolean(3, true);
                    insert.setTimestamp(4, new Timestamp(0));
                    insert.addBatch();
                }
                check("batch", Arrays.stream(insert.executeBatch()).sum() == 20);
            }
            Savepoint point = connection.setSavepoint();
            try (Statement statement = connection.createStatement()) {
                check("update", statement.executeUpdate("UPDATE app.items SET label = 'x' WHERE id = 3") == 1);
            }
            connection.rollback(point);
            connection.rollback();
            connection.setAutoCommit(true);
            CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
            check("copy in", copy.copyIn("COPY app.items (id, label) FROM STDIN", new java.io.StringReader("1\tx\n2\ty\n")) == 2);
            try (Statement statement = connection.createStatement()) {
                check("delete", statement.executeUpdate("DELETE FROM app.items WHERE id < 10") == 2);
            }
            if ("1".equals(System.getenv("GATED"))) {
                for (int round = 0; round < 2; round++) {
                    try (Statement statement = connection.createStatement()) {
                        statement.execute("DROP TABLE app.items");
                        check("the drop is refused", false);
                    } catch (SQLException error) {
                        check("its state and text", error.getSQLState().equals("42501") && error.getMessage().contains("Sidegate refused"));
                    }
                    check("the connection goes on", connection.isValid(5));
                }
            }
        }
        System.out.println("ok pgjdbc " + checks);
    }
}

import jakarta.persistence.*;
import java.math.BigDecimal;
import java.time.Instant;
import java.util.*;
import org.hibernate.SessionFactory;
import org.hibernate.cfg.Configuration;

/** Hibernate over pgjdbc: what it asks when it starts, validates or updates a schema, and first reads and writes. */
public class Hibernate {
    @Entity(name = "Customer")
    @Table(name = "users", schema = "app")
    public static class User {
        @Id @GeneratedValue(strategy = GenerationType.IDENTITY) public Long id;
        @Column(unique = true, columnDefinition = "text") public String ssn;
        public Instant at;
        @OneToMany(mappedBy = "user") public List<Order> orders = new ArrayList<>();
    }

    @Entity(name = "Purchase")
    @Table(name = "orders", schema = "app")
    public static class Order {
        @Id @GeneratedValue(strategy = GenerationType.IDENTITY) public Integer id;
        @Column(precision = 10, scale = 2) public BigDecimal total;
        @ManyToOne(fetch = FetchType.LAZY) @JoinColumn(name = "user_id") public User user;
    }

    @Entity(name = "Note")
    @Table(name = "notes", schema = "app", indexes = @Index(columnList = "text"))
    public static class Note {
        @Id @GeneratedValue(strategy = GenerationType.SEQUENCE) public Long id;
        @Version public int version;
        public String text;
        @ElementCollection public Set<String> labels = new HashSet<>();
        @ManyToOne public User author;
    }

    static SessionFactory factory(String action, Class<?>... more) {
        Configuration configuration = new Configuration();
        configuration.setProperty("hibernate.connection.url",
            "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE"));
        configuration.setProperty("hibernate.connection.username", System.getenv("PGUSER"));
        configuration.setProperty("hibernate.hbm2ddl.auto", action);
        configuration.addAnnotatedClasses(User.class, Order.class).addAnnotatedClasses(more);
        return configuration.buildSessionFactory();
    }

    public static void main(String[] args) {
        java.util.logging.LogManager.getLogManager().reset();
        // Run from its source, the classes are in the launcher's own loader, where Hibernate does not look by itself.
        Thread.currentThread().setContextClassLoader(Hibernate.class.getClassLoader());
        factory("validate").close();
        try (SessionFactory factory = factory("update", Note.class)) {
            factory.inTransaction(session -> {
                Note note = new Note();
                note.text = "first";
                note.labels.add("a");
                session.persist(note);
            });
            factory.inTransaction(session -> {
                Note note = session.createQuery("from Note n left join fetch n.author where n.text = :text", Note.class)
                    .setParameter("text", "first").getSingleResult();
                note.text = "second";
                session.createQuery("select u.ssn, count(o) from Customer u left join u.orders o group by u.ssn", Object[].class)
                    .setMaxResults(10).getResultList();
                session.createQuery("from Purchase o where o.total > 1 order by o.id", Order.class).getResultList();
            });
        }
        factory("validate", Note.class).close();
    }
}
